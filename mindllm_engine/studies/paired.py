"""What analyses that compare two settings share: held-out losses of some sources, differences seed by seed, and the
claim that comes of one. A claim whose trials are missing is kept, as not decidable, with what became of them.
"""

from collections.abc import Callable, Collection, Mapping
from statistics import fmean

from mindllm_engine.errors import DataError
from mindllm_engine.studies.claims import Claim, Verdict, not_decidable
from mindllm_engine.studies.results import Result, Results
from mindllm_engine.studies.seeds import Estimate, paired_estimate

# Trials left out that a claim names; the page lists all.
MOST_NAMED = 3

Value = Callable[[Result], float]


def mean_loss(sources: Collection[str]) -> Value:
    """What gives a result's last held-out loss, the mean over these sources, nats a token."""
    return _mean_of("heldout_loss", sources)


def _mean_of(key: str, sources: Collection[str]) -> Value:
    def value(result: Result) -> float:
        found = [result.last[f"{key}/{name}"] for name in sources if f"{key}/{name}" in result.last]
        if not found:
            raise DataError(
                f"{result.folder}: has no held-out loss of {', '.join(sources)}; raise corpus.holdout, so that each "
                "source keeps some documents"
            )
        return fmean(found)

    return value


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """`ours` less `theirs`, seed by seed; None where they have no seed in common."""
    return paired_estimate(ours, theirs) if ours.keys() & theirs.keys() else None


def judged(
    statement: str,
    source: str,
    paper: str,
    measured: tuple[str, Estimate | None],
    judge: Callable[[Estimate], tuple[Verdict, str]],
    results: Results,
    unit: str = " nats",
) -> Claim:
    """A claim by an estimate.

    Args:
        measured: what the estimate is, and it; None where trials for it are missing.
        judge: gives verdict and reason.
        results: which tell why trials are missing.
    """
    what, estimate = measured
    if estimate is None:
        return not_decidable(statement, source, paper, f"too few points: {reasons(results)}")
    return Claim(statement, source, paper, f"{what}: {estimate.text(unit=unit)}", *judge(estimate))


def reasons(results: Results) -> str:
    """What became of the trials that are missing, in one line."""
    if not results.left_out:
        return "the grid has no such trial"
    told = [f"{entry.name} ({entry.reason})" for entry in results.left_out[:MOST_NAMED]]
    more = len(results.left_out) - len(told)
    return f"left out: {'; '.join(told)}" + (f" and {more} more" if more else "")
