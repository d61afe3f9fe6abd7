"""Rank models by a judge: `python tools/arena.py --config configs/arena/law.yaml --output runs/arena`."""

from pathlib import Path

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.evaluation.arena.arena import ArenaConfig, run_arena


def main() -> None:
    """Answers, judgements, ratings; prints the table."""
    config = parse_arguments(ArenaConfig, "Let a judge rank the answers of several models, and rate them.")
    run_arena(config)
    print((Path(config.output) / "ratings.md").read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    run_tool(main)
