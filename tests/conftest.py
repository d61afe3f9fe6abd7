"""Set before torch and triton are imported: one thread a process (tests run side by side, and OpenMP's threads wait by
spinning), the workspace with which cuBLAS is deterministic (torch looks once, at its first product), and Triton's
interpreter where there is no GPU."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
