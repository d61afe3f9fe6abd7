"""Ask a network benchmarks: `python tools/evaluate.py --run runs/demo --suite FILE`.

With several processes: `torchrun --nproc-per-node 2 -- tools/evaluate.py ...`; the results are the same. (Without the
`--`, torchrun takes `--run` for one of its own options.)
"""

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.distributed.process_group import start_processes, stop_processes
from mindllm_engine.evaluation.evaluate import EvaluateArguments, evaluate


def main() -> None:
    """Evaluate a run and print the table."""
    arguments = parse_arguments(EvaluateArguments, "Ask a network the tasks of a suite, by lm-evaluation-harness.")
    arguments.validate()
    world = start_processes()
    try:
        results = evaluate(arguments, world)
    finally:
        stop_processes()
    if results is not None:
        print((arguments.folder / "results.md").read_text(encoding="utf-8"))
        print(f"results  {arguments.folder}/results.json")


if __name__ == "__main__":
    run_tool(main)
