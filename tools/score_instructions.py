"""The entropy of instruction data under a pre-trained network: `python tools/score_instructions.py --run runs/base
--records '[alpaca_en.jsonl.gz, alpaca_zh.jsonl.gz]' --out scores/alpaca`, or the same under torchrun."""

from collections import Counter

from mindllm_engine import ranks
from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.errors import DataError
from mindllm_engine.tuning.score_files import PROBLEMS_FILE, ScoreConfig, read_table, score_files


def main() -> None:
    """Score the records, and say what became of them."""
    config = parse_arguments(ScoreConfig, "Score instruction data by its entropy under a pre-trained network.")
    path = score_files(config)
    if ranks.rank_and_size()[0] == 0:
        statuses = Counter(read_table(path)["status"].to_pylist())
        counts = ", ".join(f"{count:,} {status}" for status, count in statuses.most_common()) or "no records"
        print(f"{path}: {counts}")
        if statuses.total() > statuses["scored"]:
            print(f"{path.with_name(PROBLEMS_FILE)}: what is wrong with each record that was not scored")
        if not statuses["scored"]:
            raise DataError(f"{path}: not one record could be scored; mend the files, and choose another out")


if __name__ == "__main__":
    run_tool(main)
