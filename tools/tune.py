"""Tune a network on records: `torchrun --nproc-per-node 2 tools/tune.py --config configs/tuning/alpaca_small.yaml`."""

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.distributed.launcher import end_with_launcher
from mindllm_engine.tuning.config import TuneConfig
from mindllm_engine.tuning.tune import tune


def main() -> None:
    """Parse a tuning's configuration and tune."""
    end_with_launcher()
    tune(parse_arguments(TuneConfig, "Tune a trained network on instruction or chat records."))


if __name__ == "__main__":
    run_tool(main)
