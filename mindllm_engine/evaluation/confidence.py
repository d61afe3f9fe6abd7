"""How sure a score is: intervals for one accuracy, and for the difference of two models on the same questions.

A benchmark's questions are taken as drawn at random from all that might have been asked; the intervals say nothing of
another prompt, another seed of training, or another benchmark.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both in."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Is the value within? Where chance level is, a score cannot be told apart from guessing."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class PairedDifference:
    """Model a's mean score less model b's on the same questions.

    Attributes:
        difference: of the means.
        interval: in which the difference lies at the level asked for.
        p_value: two-sided, of no difference: McNemar's exact test where scores are right or wrong, else by the
            bootstrap, which has none below 2 / (rounds + 1).
        questions: how many.
    """

    difference: float
    interval: Interval
    p_value: float
    questions: int

    @property
    def told_apart(self) -> bool:
        """False where the interval holds 0."""
        return not self.interval.holds(0.0)


def wilson(correct: float, total: int, level: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion (1927): within 0 and 1, and sound for few questions and none right.

    Args:
        correct: number of right answers.
        total: number of questions, 1 or more.
        level: how often such an interval holds the truth.

    Raises:
        ValueError: counts that no benchmark can give.
    """
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"{correct} right answers of {total} questions")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # At the ends the interval touches 0 and 1 exactly; rounding may leave it just short of them.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == total else min(1.0, centre + half)
    return Interval(low, high)


def paired_bootstrap(
    scores_a: ArrayLike, scores_b: ArrayLike, rounds: int = 10_000, level: float = 0.95, seed: int = 0
) -> PairedDifference:
    """The difference of two models' means over the same questions, with a percentile bootstrap over questions.

    Pairing takes out what makes a question hard for both, so the interval is narrower than from two intervals apart.

    Args:
        scores_a, scores_b: a score for each question, in the same order.
        rounds: resamples.
        level: of the interval.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: scores of other lengths, or none.
    """
    a, b = np.asarray(scores_a, dtype=np.float64), np.asarray(scores_b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"the scores of one question each, in pairs, expected; got {a.shape} and {b.shape}")
    differences = a - b
    means = _resampled_means(differences, rounds, np.random.default_rng(seed))
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    if np.isin(differences, (-1, 0, 1)).all():
        p_value = _mcnemar(int((differences > 0).sum()), int((differences < 0).sum()))
    else:  # resamples on the side of zero that the difference is not on, both ways
        fewer = min(int((means <= 0).sum()), int((means >= 0).sum()))
        p_value = min(1.0, 2 * (fewer + 1) / (rounds + 1))
    return PairedDifference(float(differences.mean()), Interval(float(low), float(high)), p_value, len(a))


def _mcnemar(wins: int, losses: int) -> float:
    """McNemar's exact test (1947): of questions that one model alone has right, each is as likely to have them."""
    questions = wins + losses
    term, total = 1, 0
    for k in range(min(wins, losses) + 1):
        total += term  # whole numbers: binomial coefficients of thousands of questions are beyond floats
        term = term * (questions - k) // (k + 1)
    return min(1.0, 2 * total / 2**questions)


def _resampled_means(values: np.ndarray, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """Means of `rounds` resamples with replacement.

    How often each distinct value is drawn is multinomial; differences of right and wrong have three distinct values, so
    a resample of 14,000 questions costs three numbers.
    """
    distinct, counts = np.unique(values, return_counts=True)
    shares = counts / len(values)
    at_once = max(1, 4_000_000 // len(distinct))
    means = [
        rng.multinomial(len(values), shares, size=min(at_once, rounds - start)) @ distinct / len(values)
        for start in range(0, rounds, at_once)
    ]
    return np.concatenate(means)
