"""The search on a planted bowl: it finds the bottom better than chance, asks the same again, and judges its place."""

import math
from typing import Any

import pytest

from mindllm_engine.errors import ConfigError
from mindllm_engine.studies.wind_tunnel.search import Ranges, SearchConfig, near_best, propose
from tests.studies.planted_rounds import BASE, results_with, run_rounds

SEEDS = [1, 2, 3]
RANGES = Ranges(scale_emb=(1, 25), scale_depth=(0.5, 8), init_std=(0.02, 0.2), lr=(0.001, 0.08))
BOTTOM = {"scale_emb": 10.0, "scale_depth": 1.5, "init_std": 0.08, "lr": 0.012}


def bowl(settings: dict[str, Any]) -> float:
    """Least at BOTTOM; seeds differ by a hundredth."""
    setting = settings["setting"]
    distance = sum(math.log(setting[name] / BOTTOM[name]) ** 2 for name in BOTTOM)
    return 4 + 0.2 * distance + 0.01 * settings.get("seed", 0)


def config(**fields: Any) -> SearchConfig:
    return SearchConfig(**({"ranges": RANGES, "batches": 8, "batch_size": 6} | fields))


def test_finds_lower_than_as_many_random_trials() -> None:
    results = run_rounds(config(), SEEDS, bowl)
    searched = [result.loss for result in results.with_settings(kind="searched")]
    assert len(searched) == 48
    chance = [bowl({"setting": setting}) for setting in propose(RANGES, [], 48, seed=5)]
    assert min(searched) < min(chance)
    assert sum(searched[24:]) < sum(searched[:6]) / 6 * 24


def test_asks_for_the_same_trials_again_from_the_same_results() -> None:
    of = config(batches=3)
    results = run_rounds(of, SEEDS, bowl)
    again = config(batches=3).trials(BASE, SEEDS, results)
    assert {trial.name: trial.settings for trial in again} == {result.name: result.settings for result in results}
    begun = results_with([trial for trial in again if trial.settings.get("batch") in (0, None)][:9], bowl)
    resumed = {trial.name: trial.settings for trial in of.trials(BASE, SEEDS, begun)}
    assert resumed == {
        result.name: result.settings
        for result in results
        if result.settings.get("batch", 9) < 2 or "paper" in result.name
    }


def test_the_best_is_trained_anew_by_every_seed_beside_the_papers() -> None:
    results = run_rounds(config(batches=2), SEEDS, bowl)
    best = min(results.with_settings(kind="searched"), key=lambda result: result.loss)
    found, paper = (results.with_settings(kind=kind) for kind in ("found", "paper"))
    assert [result.settings["setting"] for result in found] == [best.settings["setting"]] * 3
    assert [result.settings["seed"] for result in found] == SEEDS
    assert {result.settings["setting"]["scale_emb"] for result in paper} == {12.0}


def test_the_papers_setting_is_judged_by_seeds() -> None:
    findings = config().analyse(run_rounds(config(), SEEDS, bowl), SEEDS)
    assert findings.claims[0].verdict == "confirmed"  # BOTTOM is close to it
    assert len(findings.claims) == 5
    assert findings.claims[1].paper == "12"

    def far(settings: dict[str, Any]) -> float:
        return bowl(settings) + 2 * (settings["kind"] == "paper")

    assert config().analyse(run_rounds(config(), SEEDS, far), SEEDS).claims[0].verdict == "not confirmed"


def test_where_the_good_settings_lie() -> None:
    searched = [({"lr": rate}, loss) for rate, loss in ((0.01, 3.0), (0.02, 3.01), (0.008, 3.02), (0.1, 5.0))]
    near = near_best(searched, "lr", 0.01)
    assert near is not None
    assert (near.value, near.low, near.high, near.count) == (0.01, 0.008, 0.02, 3)
    few = near_best(searched, "lr", 1e-6)
    assert few is not None
    assert not few.is_bounded
    assert near_best([], "lr", 0.01) is None
    assert near_best(searched, "lr", None) is None


def test_diverged_trials_teach_the_search() -> None:
    def loss(settings: dict[str, Any]) -> float | None:
        return None if settings["setting"]["lr"] > 0.02 else bowl(settings)

    results = run_rounds(config(batches=4), SEEDS, loss)
    assert results.left_out
    late = [result for result in results if result.settings.get("batch") == 3]
    assert len(late) >= 4
    assert len(results.with_settings(kind="found")) == 3


def test_one_seed_decides_nothing() -> None:
    findings = config(batches=1).analyse(run_rounds(config(batches=1), [1], bowl), [1])
    assert {claim.verdict for claim in findings.claims} == {"not decidable"}


def test_shorter_runs_by_further_changes() -> None:
    trials = config(changes={"train.steps": 3}).trials(BASE, SEEDS, None)
    assert {trial.changes["train.steps"] for trial in trials} == {3}
    assert all(trial.changes["optim.schedule.min_lr"] < trial.changes["optim.lr"] for trial in trials)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ranges": Ranges((1, 25), (0.5, 8), (0.2, 0.02), (0.001, 0.08))}, r"search\.ranges\.init_std"),
        ({"ranges": Ranges((0, 25), (0.5, 8), (0.02, 0.2), (0.001, 0.08))}, r"search\.ranges\.scale_emb"),
        ({"batches": 0}, "must be at least 1"),
    ],
)
def test_bad_searches_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**fields).trials(BASE, SEEDS, None)


def test_needs_its_own_seed_and_the_papers_setting() -> None:
    with pytest.raises(ConfigError, match="0 is the search's own"):
        config().trials(BASE, [0, 1], None)
    network = {key: value for key, value in BASE["model"]["minicpm"].items() if key != "scale_depth"}
    with pytest.raises(ConfigError, match="scale_depth: missing"):
        config().trials(BASE | {"model": {"minicpm": network}}, SEEDS, None)
