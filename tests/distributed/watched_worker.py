"""A rank that goes through collectives without end under the watchdog: `watched_worker.py TIMEOUT_MINUTES [HANG]`.

Started with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. With HANG, rank 1 sleeps for ever at step 20 before the
collective of bucket 1, and goes on living.
"""

import os
import sys
import time

import torch
import torch.distributed as dist

from mindllm_engine.command_line import run_tool
from mindllm_engine.distributed import watchdog


def main() -> None:
    dist.init_process_group("gloo")
    with watchdog.watching(float(sys.argv[1])):
        for step in range(1, 1_000_000):
            watchdog.begin_step(step)
            for bucket in range(3):
                watchdog.mark(f"backward of bucket {bucket}")
                time.sleep(0.002)
                if "HANG" in sys.argv and (step, bucket, dist.get_rank()) == (20, 1, 1):
                    time.sleep(1000)
                watchdog.mark(f"reduce-scatter of bucket {bucket} (layers.{bucket}.qkv)")
                dist.all_reduce(torch.ones(1000))
            if step == 20:
                print(f"rank {os.environ['RANK']} is under way", flush=True)


run_tool(main)
