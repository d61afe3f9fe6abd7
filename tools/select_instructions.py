"""Choose instruction data by its entropy: `python tools/select_instructions.py --scores scores/alpaca
--out chosen/alpaca`, after tools/score_instructions.py."""

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.tuning.selection import SelectConfig
from mindllm_engine.tuning.selection_files import select


def main() -> None:
    """Choose, and say what the paper's rule recommends."""
    config = parse_arguments(SelectConfig, "Cluster scored instruction data by entropy and sample each cluster.")
    selection = select(config)
    print(
        f"{len(selection.pool.rows):,} records, pre-training entropy {selection.pretraining_entropy:.4f} nats a token"
    )
    for found in selection.recommendations:
        place = "in the paper's band" if found.inside else "no cluster lies in the paper's band, this is the nearest"
        print(f"{found.use}: cluster {found.cluster}, {found.gap:+.3f} ({place})")
    print(f"{config.out}/report.md: clusters, choices and their baselines")


if __name__ == "__main__":
    run_tool(main)
