"""One thread a process, set before torch is imported: tests run side by side, and OpenMP's threads wait by spinning."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
