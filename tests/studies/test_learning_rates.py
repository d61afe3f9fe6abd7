"""Best learning rates across widths, on planted losses whose optimum is known."""

import math
from typing import Any

import pytest

from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.studies.wind_tunnel.learning_rates import LearningRatesConfig
from tests.studies.planted_rounds import BASE, results_with, run_rounds

SEEDS = [1, 2, 3]
RATES = [0.0025, 0.005, 0.01, 0.02, 0.04]


def config(**fields: Any) -> LearningRatesConfig:
    return LearningRatesConfig(**({"rates": RATES, "widths": [64, 128, 256]} | fields))


def law(settings: dict[str, Any], standard_power: float = -1.0) -> float:
    """A parabola whose optimum is 0.011 by MiniCPM's rules, and falls with the width without them."""
    power = standard_power if settings["parametrization"] == "standard" else 0.0
    optimum = 0.011 * (settings["width"] / 64) ** power * 2 ** (0.05 * (settings["seed"] - 2))
    return 4 + 0.3 * math.log2(settings["rate"] / optimum) ** 2


def verdicts(of: LearningRatesConfig, loss: Any, seeds: list[int] = SEEDS) -> list[str]:
    findings = of.analyse(run_rounds(of, seeds, loss), seeds)
    assert len(findings.pictures) == 1
    return [claim.verdict for claim in findings.claims]


def test_planted_optima_are_recovered_and_judged() -> None:
    results = run_rounds(config(), SEEDS, law)
    findings = config().analyse(results, SEEDS)
    assert [claim.verdict for claim in findings.claims] == ["confirmed"] * 5
    assert findings.numbers["minicpm_256"]["2"]["rate"] == pytest.approx(0.011)
    assert findings.numbers["standard_256"]["2"]["rate"] == pytest.approx(0.011 / 4)
    assert "times 0.25" in findings.claims[1].here


def test_an_optimum_that_moves_by_neither_rule_is_not_confirmed() -> None:
    assert verdicts(config(), lambda settings: law(settings, standard_power=0.0))[:2] == ["confirmed", "not confirmed"]


def test_a_rate_that_serves_the_widest_no_better_by_the_rules_is_not_confirmed() -> None:
    def loss(settings: dict[str, Any]) -> float:
        return law(settings, standard_power=0.0) + (settings["parametrization"] == "minicpm") * settings["width"] / 1000

    claim = config().analyse(run_rounds(config(), SEEDS, loss), SEEDS).claims[-1]
    assert (claim.verdict, claim.here) == ("not confirmed", "0.256 (0.256 to 0.256) nats a token")


def test_the_base_width_is_trained_once_for_both() -> None:
    trials = config().trials(BASE, SEEDS, None)
    assert len(trials) == (1 + 2 * 2) * len(RATES) * len(SEEDS)
    standard = [trial for trial in trials if trial.settings["parametrization"] == "standard"]
    assert {trial.changes["model.minicpm.width_base"] for trial in standard} == {None}
    assert {trial.settings["width"] for trial in standard} == {128, 256}
    wide = next(trial for trial in standard if trial.settings["width"] == 256)
    assert (wide.changes["model.minicpm.ffn_size"], wide.changes["model.minicpm.n_heads"]) == (640, 16)
    assert all(
        trial.changes["optim.schedule.min_lr"] == pytest.approx(trial.changes["optim.lr"] / 10) for trial in trials
    )


def test_the_grid_grows_where_the_best_lies_at_its_end_and_only_there() -> None:
    of = config(rates=[0.01, 0.02, 0.04])
    first, results = of.trials(BASE, SEEDS, None), run_rounds(of, SEEDS, law)
    grown = [result for result in results if result.settings["rate"] < 0.01]
    assert {result.settings["rate"] for result in grown if result.settings["parametrization"] == "minicpm"} == {0.005}
    lowest = dict.fromkeys((128, 256), 1.0)
    for result in grown:
        if result.settings["parametrization"] == "standard":
            width = result.settings["width"]
            lowest[width] = min(lowest[width], result.settings["rate"])
    assert lowest == {128: 0.0025, 256: 0.00125}
    assert len(results) > len(first)
    assert [claim.verdict for claim in of.analyse(results, SEEDS).claims] == ["confirmed"] * 5


def test_an_optimum_beyond_the_grown_grid_is_said_so() -> None:
    of = config(rates=[0.01, 0.02, 0.04], extensions=1)
    findings = of.analyse(run_rounds(of, SEEDS, law), SEEDS)
    claim = findings.claims[1]
    assert claim.verdict == "not decidable"
    assert "the lowest rate tried, 0.005, and the true one may lie beyond" in claim.reason
    assert "at the lowest rate tried" in findings.tables[0].rows[2][1]


def test_diverged_runs_count_as_a_guess_and_do_not_end_the_study() -> None:
    def loss(settings: dict[str, Any]) -> float | None:
        return None if settings["rate"] >= 0.02 and settings["width"] == 256 else law(settings)

    of = config()
    results = run_rounds(of, SEEDS, loss)
    assert len(results.left_out) == 12
    findings = of.analyse(results, SEEDS)
    best = findings.numbers["minicpm_256"]["2"]
    assert best["edge"] is None
    assert 0.0099 / math.sqrt(2) < best["rate"] <= 0.011  # pulled to the side away from them, by half a step at most


def test_a_network_that_is_missing_leaves_its_claims_undecided() -> None:
    of = config()
    trials = of.trials(BASE, SEEDS, None)
    results = results_with([trial for trial in trials if trial.settings["width"] != 256], law)
    findings = of.analyse(results, SEEDS)
    assert {claim.verdict for claim in findings.claims} == {"not decidable"}
    assert findings.claims[0].reason == "too few rates have a loss"


def test_one_seed_decides_nothing() -> None:
    assert set(verdicts(config(), law, seeds=[1])) == {"not decidable"}


def test_nothing_finished_is_said_with_a_reason() -> None:
    results = results_with(config().trials(BASE, SEEDS, None), lambda settings: None)
    with pytest.raises(DataError, match=r"no trial has finished \(.*diverged"):
        config().analyse(results, SEEDS)


def test_mixed_tokenizers_are_refused() -> None:
    trials = config().trials(BASE, SEEDS, None)
    one, two = results_with(trials[:40], law), results_with(trials[40:], law, {"tokenizer": "other"})
    with pytest.raises(DataError, match="differ in their tokenizer"):
        config().analyse(type(one)([*one, *two], []), SEEDS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rates": [0.01, 0.02]}, "three different rates"),
        ({"rates": [0.01, 0.02, 0.03]}, "the same factor"),
        ({"rates": [0.04, 0.02, 0.01]}, "the same factor"),
        ({"rates": [0.0, 0.02, 0.04]}, "above 0"),
        ({"widths": [64]}, "two at least"),
        ({"widths": [128, 64]}, "the smallest first"),
        ({"widths": [64, 72]}, r"width 72: model\.minicpm\.n_heads"),
        ({"layers": [2]}, "1 numbers for 3 widths"),
        ({"extensions": -1}, "negative"),
    ],
)
def test_bad_grids_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**fields).trials(BASE, SEEDS, None)


def test_runs_of_another_network_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.minicpm: missing"):
        config().trials({"model": {"gpt_neo": {"hidden_size": 64}}}, SEEDS, None)
    base = {"model": {"minicpm": BASE["model"]["minicpm"] | {"width_base": None}}}
    with pytest.raises(ConfigError, match=r"model\.minicpm\.width_base: missing"):
        config().trials(base, SEEDS, None)
