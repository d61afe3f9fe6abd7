"""Merge a LoRA run into a run folder of its own: `python tools/merge_lora.py --run runs/alpaca_lora`."""

from dataclasses import dataclass
from pathlib import Path

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.tuning.merging import merge_run


@dataclass
class MergeArguments:
    """Which run to merge."""

    run: str
    """The run folder of a tuning with `tuning.lora`. Its folders merged/ and, for GPT-Neo, adapter/ are made anew."""


def main() -> None:
    """Merge, and say how far the logits have drifted."""
    arguments = parse_arguments(MergeArguments, "Add a LoRA run's low-rank additions to the matrices, in fp32.")
    print(merge_run(Path(arguments.run)))


if __name__ == "__main__":
    run_tool(main)
