"""Sums to tune on and to be asked: `python tools/make_arithmetic.py --out data/arithmetic`."""

from dataclasses import dataclass
from pathlib import Path

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.tuning.arithmetic import write_arithmetic


@dataclass
class ArithmeticArguments:
    """Write all additions and subtractions of small numbers as records for tools/tune.py, and questions about them."""

    out: str
    """Folder for train.jsonl (records), seen.jsonl and heldout.jsonl (questions)."""
    largest: int = 99
    """The largest number in a question."""
    holdout: float = 0.1
    """Share of the sums that are not trained on."""
    questions: int = 500
    """Questions drawn from those trained on, and from those held out."""
    seed: int = 0
    """Draws the questions."""


def main() -> None:
    """Write the files and say how many records they have."""
    arguments = parse_arguments(ArithmeticArguments, "Write sums to tune on, and to be asked afterwards.")
    written = write_arithmetic(
        Path(arguments.out), arguments.largest, arguments.holdout, arguments.questions, arguments.seed
    )
    for name, records in written.items():
        print(f"{arguments.out}/{name}: {records:,} sums")


if __name__ == "__main__":
    run_tool(main)
