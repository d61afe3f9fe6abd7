"""The step guard against the rule written out in numpy, step by step, on sequences that hypothesis draws."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mindllm_engine.optim.step_guard import DEVIATION_FLOOR, ENOUGH, WINDOW, StepGuard

CPU = torch.device("cpu")


def judge(guard: StepGuard, loss: float, norm: float) -> bool:
    verdict = guard(torch.tensor(loss, dtype=torch.float32), torch.tensor(norm, dtype=torch.float32))
    assert (verdict.shape, verdict.dtype) == ((), torch.bool)
    return bool(verdict)


class NaiveGuard:
    """The rule as a sentence: lists of what was accepted, and numpy's mean and standard deviation of the newest."""

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma
        self.accepted: list[tuple[float, float]] = []
        self.margin = np.inf  # how close any comparison was, relative: a tie may fall either way

    def judge(self, loss: float, norm: float) -> bool:
        pair = (float(np.float32(loss)), float(np.float32(norm)))
        bad = not np.isfinite(pair).all()
        if not bad and self.sigma > 0 and len(self.accepted) >= ENOUGH:
            window = np.array(self.accepted[-WINDOW:])
            mean = window.mean(axis=0)
            limit = mean + self.sigma * np.maximum(window.std(axis=0, ddof=1), DEVIATION_FLOOR * abs(mean))
            bad = bool((pair > limit).any())
            self.margin = min(self.margin, (abs(np.array(pair) - limit) / abs(limit).clip(1e-30)).min())
        if not bad:
            self.accepted.append(pair)
        return bad


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.integers(1, 3 * WINDOW),
    sigma=st.sampled_from([0.0, 1.0, 3.0, 6.0]),
    noise=st.sampled_from([0.0, 1e-6, 0.01, 0.5]),
    faults=st.floats(0, 0.2),
)
def test_follows_the_rule_written_out(seed: int, steps: int, sigma: float, noise: float, faults: float) -> None:
    rng = np.random.default_rng(seed)
    guard, naive = StepGuard(sigma, CPU), NaiveGuard(sigma)
    skipped = in_a_row = 0
    for step in range(steps):
        loss, norm = (3 - step / steps) * (1 + noise * rng.standard_normal(2))
        if rng.random() < faults:
            loss, norm = rng.choice([np.nan, np.inf, -np.inf, 1e30, 4.0, 0.0, loss], 2)
        expected = naive.judge(loss, norm)
        assert naive.margin > 1e-12
        assert judge(guard, loss, norm) == expected
        skipped += expected
        in_a_row = in_a_row + 1 if expected else 0
        assert [guard.skipped.item(), guard.in_a_row.item()] == [skipped, in_a_row]


def filled(sigma: float, steps: int = WINDOW, seed: int = 0) -> StepGuard:
    """A guard that has seen losses of 2 +- 0.02 and norms of 1 +- 0.1."""
    rng = np.random.default_rng(seed)
    guard = StepGuard(sigma, CPU)
    for loss, norm in zip(rng.normal(2, 0.02, steps), rng.normal(1, 0.1, steps), strict=True):
        assert not judge(guard, loss, norm)
    return guard


@pytest.mark.parametrize(("loss", "norm"), [(2.3, 1.0), (2.0, 2.5), (np.nan, 1.0), (2.0, np.inf), (-np.inf, 1.0)])
def test_skips_what_stands_out(loss: float, norm: float) -> None:
    assert judge(filled(6.0), loss, norm)


@pytest.mark.parametrize(("loss", "norm"), [(0.1, 1.0), (2.0, 0.0), (2.05, 1.3), (-5.0, 1.0)])
def test_lets_pass_what_lies_below_or_near(loss: float, norm: float) -> None:
    assert not judge(filled(6.0), loss, norm)


def test_judges_by_the_window_only_when_enough_is_in_it() -> None:
    assert not judge(filled(6.0, ENOUGH - 1), 1e6, 1e6)
    assert judge(filled(6.0, ENOUGH), 1e6, 1e6)
    assert judge(filled(6.0, 0), np.nan, 1.0), "what is not finite is skipped from the first step on"


def test_sigma_of_0_skips_only_what_is_not_finite() -> None:
    guard = filled(0.0)
    assert not judge(guard, 1e30, 1e30)
    assert judge(guard, np.nan, 1.0)


def test_losses_that_are_all_equal_may_wiggle() -> None:
    guard = StepGuard(6.0, CPU)
    for _ in range(WINDOW):
        assert not judge(guard, 2.0, 0.0)
    assert not judge(guard, 2.0001, 0.0)
    assert judge(guard, 2.1, 0.0)


def test_bad_steps_do_not_make_each_other_normal() -> None:
    guard = filled(6.0)
    assert all(judge(guard, 3.0, 1.0) for _ in range(2 * WINDOW))
    assert guard.in_a_row == guard.skipped == 2 * WINDOW
    assert not judge(guard, 2.0, 1.0)
    assert guard.in_a_row == 0


def test_forgetting_lets_harder_data_begin() -> None:
    guard = filled(6.0)
    guard.forget()
    assert not any(judge(guard, 3.0 + 0.001 * (step % 7), 1.0) for step in range(WINDOW))
    assert judge(guard, 5.0, 1.0)


@pytest.mark.parametrize("steps", [0, 1, ENOUGH, WINDOW + 5])
def test_goes_on_bit_for_bit_from_its_state_in_json(steps: int) -> None:
    guard = filled(1.0, 0)
    rng = np.random.default_rng(steps)
    for value in rng.normal(1, 0.1, steps):
        guard(torch.tensor(value).float(), torch.tensor(1.0))
    other = StepGuard(1.0, CPU)
    other.load_state(json.loads(json.dumps(guard.state())))
    for value in rng.normal(1, 0.1, 200):
        numbers = torch.tensor(value).float(), torch.tensor(1 / value).float()
        assert torch.equal(guard(*numbers), other(*numbers))
        assert torch.equal(guard.window, other.window)
        assert torch.equal(guard.counts, other.counts)


def test_an_empty_state_is_that_of_a_new_guard() -> None:
    guard = filled(6.0)
    guard.load_state([])
    assert guard.state() == StepGuard(6.0, CPU).state()


def test_nothing_is_read_back_from_the_device() -> None:
    """On a meta device there is nothing to read: whatever asked for a value would raise."""
    guard = StepGuard(6.0, torch.device("meta"))
    guard.forget()
    number = torch.empty((), device="meta")
    assert guard(number, number).shape == ()
