"""Compare two evaluations of the same tasks: paired differences with intervals.

tools/compare_evaluations.py --a runs/base/evaluation --b runs/tuned/evaluation
"""

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.evaluation.compare import CompareArguments, compare, comparison_table


def main() -> None:
    arguments = parse_arguments(CompareArguments, "Compare two evaluations of the same tasks, question by question.")
    comparisons, notes = compare(arguments)
    print(comparison_table(comparisons, arguments.level))
    for note in notes:
        print(f"not compared: {note}")


if __name__ == "__main__":
    run_tool(main)
