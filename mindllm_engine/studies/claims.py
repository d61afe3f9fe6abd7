"""A paper's claim beside what is measured here, and the verdict that the interval allows."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from mindllm_engine.studies.seeds import Estimate

Verdict = Literal["confirmed", "not confirmed", "not decidable"]


@dataclass(frozen=True)
class Claim:
    """One line of the page that sets "paper" beside "here".

    Attributes:
        statement: what is claimed, in one sentence that could be false.
        source: where: paper, section, figure or table.
        paper: the paper's figure, with its unit; empty where it gives none.
        here: the figure measured here, with its interval.
        verdict: at this scale.
        reason: why the verdict is this one.
    """

    statement: str
    source: str
    paper: str
    here: str
    verdict: Verdict
    reason: str

    @property
    def paper_shown(self) -> str:
        """The paper's figure as a reader finds it."""
        return self.paper or "no figure at hand"

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def judge_above(estimate: Estimate, threshold: float) -> tuple[Verdict, str]:
    """The verdict on "the number is above `threshold`", and its reason."""
    if not estimate.is_bounded:
        return "not decidable", "too few values for an interval"
    if estimate.low > threshold:
        return "confirmed", f"the whole interval lies above {threshold:g}"
    if estimate.high < threshold:
        return "not confirmed", f"the whole interval lies below {threshold:g}"
    return "not decidable", f"the interval holds {threshold:g}"


def judge_below(estimate: Estimate, threshold: float) -> tuple[Verdict, str]:
    """The verdict on "the number is below `threshold`", and its reason."""
    if not estimate.is_bounded:
        return "not decidable", "too few values for an interval"
    if estimate.high < threshold:
        return "confirmed", f"the whole interval lies below {threshold:g}"
    if estimate.low > threshold:
        return "not confirmed", f"the whole interval lies above {threshold:g}"
    return "not decidable", f"the interval holds {threshold:g}"


def judge_within(estimate: Estimate, low: float, high: float) -> tuple[Verdict, str]:
    """The verdict on "the number lies between `low` and `high`", and its reason."""
    if not estimate.is_bounded:
        return "not decidable", "too few values for an interval"
    if low <= estimate.low and estimate.high <= high:
        return "confirmed", f"the whole interval lies between {low:g} and {high:g}"
    if estimate.high < low or estimate.low > high:
        return "not confirmed", f"the whole interval lies outside {low:g} to {high:g}"
    return "not decidable", f"the interval reaches over an end of {low:g} to {high:g}"


def not_decidable(statement: str, source: str, paper: str, reason: str, here: str = "") -> Claim:
    """A claim that nothing here can decide: a trial is missing, or the scale does not reach it."""
    return Claim(statement, source, paper, here, "not decidable", reason)
