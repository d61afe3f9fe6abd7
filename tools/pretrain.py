"""Pre-train a network: `torchrun --nproc-per-node 2 tools/pretrain.py --config configs/demo.yaml`."""

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.distributed.launcher import end_with_launcher
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.loop import pretrain


def main() -> None:
    """Parse a run's configuration and train."""
    end_with_launcher()
    pretrain(parse_arguments(RunConfig, "Pre-train a language model on token files, or on text that the config names."))


if __name__ == "__main__":
    run_tool(main)
