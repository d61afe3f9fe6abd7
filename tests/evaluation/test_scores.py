"""Figures of an entry: whose interval is Wilson's, and whose comes from the spread of the questions' scores."""

from typing import Any

import pytest

from mindllm_engine.evaluation.confidence import wilson
from mindllm_engine.evaluation.scores import entry_scores
from mindllm_engine.evaluation.suites import SuiteTask


def raw(values: list[float]) -> dict[str, Any]:
    """What lm-eval gives of a task with these scores."""
    mean = sum(values) / len(values)
    stderr = (sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)) ** 0.5
    return {
        "results": {"mc": {"acc,none": mean, "acc_stderr,none": stderr, "sample_len": len(values)}},
        "samples": {"mc": [{"acc": value} for value in values]},
    }


def entry() -> SuiteTask:
    return SuiteTask(task="mc", num_fewshot=0, metric="acc")


def test_right_and_wrong_have_wilsons_interval() -> None:
    (score,) = entry_scores(entry(), raw([1.0] * 7 + [0.0] * 3))
    expected = wilson(7, 10)
    assert (score.low, score.high) == (expected.low, expected.high)


def test_scores_between_have_the_interval_of_their_mean() -> None:
    """TruthfulQA's mc2 gives the share of probability on true answers: all near a half, and so well known."""
    values = [0.45, 0.5, 0.55] * 30
    (score,) = entry_scores(entry(), raw(values))
    assert score.value == pytest.approx(0.5)
    assert score.low is not None
    assert score.high is not None
    assert score.high - score.low == pytest.approx(2 * 1.96 * (0.05**2 * 60 / 89 / 90) ** 0.5)
    assert score.high - score.low < (wilson(45, 90).high - wilson(45, 90).low) / 5
