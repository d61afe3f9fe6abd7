"""Instructions mixed into the decay against instructions after it (MiniCPM, arXiv 2404.06395, section 5): the part of
analysis.py that reads the trials with instructions."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from mindllm_engine.studies.claims import Claim, Verdict, judge_below
from mindllm_engine.studies.findings import Table
from mindllm_engine.studies.paired import Value, difference, judged, mean_loss
from mindllm_engine.studies.results import Results
from mindllm_engine.studies.seeds import Estimate, mean_estimate

if TYPE_CHECKING:
    from mindllm_engine.studies.wsd.experiment import InstructionConfig, WsdConfig

SECTION_5 = "MiniCPM (arXiv 2404.06395), section 5"
TABLE_1 = f"{SECTION_5}, Table 1"
# Table 1: C-Eval of A-1 and A-2 (2.4B), and of B-2 and B-3 (1.2B), in per cent.
A_1_AND_A_2 = "C-Eval 40.0 without, 52.6 with instructions in the decay (A-1, A-2)"
B_2_AND_B_3 = "C-Eval 41.2 without but with twice the tuning, 49.1 with instructions in the decay (B-2, B-3)"

# Kind of trial -> how the table calls it; one that begins with dots goes on from the one above it.
ARMS = {
    "wsd": "decay on pre-training text",
    "plain_tuned": "... then instructions",
    "plain_tuned_longer": "... until they are as many as in decay and after it",
    "mixed": "decay with instructions mixed in",
    "mixed_tuned": "... then instructions",
}


def instruction_claims(
    config: "WsdConfig", instruction: "InstructionConfig", results: Results, names: Collection[str]
) -> list[Claim]:
    """In the decay against after it, by the loss on instructions; and what a mixed decay learns the most of.

    Args:
        names: the sources of pre-training.
    """
    on_instructions, on_text = mean_loss(instruction.weights), mean_loss(names)
    mixed = results.by_seed(on_instructions, kind="mixed_tuned")
    once = results.by_seed(on_instructions, kind="plain_tuned")
    longer = results.by_seed(on_instructions, kind="plain_tuned_longer")
    falls = [_falls(config, results, value) for value in (on_text, on_instructions)]
    return [
        judged(
            "Instructions in the decay and after it leave a lower loss on instructions than those after it alone, at "
            "equal tokens in all",
            TABLE_1,
            A_1_AND_A_2,
            ("in the decay less after it", difference(mixed, once)),
            _below_zero,
            results,
        ),
        judged(
            "Instructions in the decay and after it leave a lower loss on instructions than as many after it alone, on "
            "more tokens in all",
            TABLE_1,
            B_2_AND_B_3,
            ("in the decay less after it", difference(mixed, longer)),
            _below_zero,
            results,
        ),
        judged(
            "In a decay with instructions mixed in, the loss on them falls by more than that on pre-training text",
            SECTION_5,
            "",
            ("fall on pre-training text less that on instructions", difference(*falls)),
            _below_zero,
            results,
        ),
    ]


def instruction_table(
    config: "WsdConfig", instruction: "InstructionConfig", results: Results, names: Collection[str]
) -> Table:
    """Each arm with its tokens and both losses."""
    rows = []
    for kind, label in ARMS.items():
        settings = {"kind": kind} | ({"steps": config.compared_at, "decay": config.decay} if kind == "wsd" else {})
        arm = results.with_settings(**settings)
        if not arm:
            continue
        of_instructions = sum(
            (block.tokens or 0) * _share_of(block.weights, instruction.weights) for block in arm[0].config.data.blocks
        )
        losses = [
            mean_estimate([value(result) for result in arm]).text(4)
            for value in (mean_loss(instruction.weights), mean_loss(names))
        ]
        rows.append([label, f"{arm[0].tokens:,}", f"{of_instructions:,.0f}", *losses])
    return Table(
        "Instructions in the decay and after it: held-out loss, nats a token",
        ["", "tokens", "of instructions", "loss on instructions", "loss on pre-training text"],
        rows,
        "Each interval is of one arm over the seeds; the claims compare arms seed by seed.",
    )


def _falls(config: "WsdConfig", results: Results, value: Value) -> dict[int, float]:
    """Seed -> how far a loss falls in the mixed decay."""
    before = results.by_seed(value, kind="stable", steps=config.branch_point(config.compared_at, config.decay))
    after = results.by_seed(value, kind="mixed")
    return {seed: before[seed] - after[seed] for seed in before.keys() & after.keys()}


def _below_zero(estimate: Estimate) -> tuple[Verdict, str]:
    return judge_below(estimate, 0)


def _share_of(weights: dict[str, float], part: Collection[str]) -> float:
    total = sum(weights.values())
    return sum(weight for name, weight in weights.items() if name in part) / total if total else 0.0
