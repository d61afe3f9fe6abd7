"""The scaling study: its grid, planted ladders, what is refused, and a real one of tiny networks."""

from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from mindllm_engine.command_line import parse_arguments
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.studies.networks import NetworkSize, WidthRule
from mindllm_engine.studies.results import LeftOut, Result
from mindllm_engine.studies.scaling import ScalingConfig
from mindllm_engine.studies.study import StudyConfig, run_study
from mindllm_engine.studies.trials import plan_trials
from tests.studies.planted_rounds import BASE
from tests.studies.tiny_runs import SEQ_LEN, planted, results_of, runs, write_runs

WIDTHS = (8, 16, 24, 32, 48)


def ladder(widths: tuple[int, ...] = WIDTHS, **changes: Any) -> ScalingConfig:
    sizes = [NetworkSize(width, 2 * width, 1, 2) for width in widths]
    given: dict[str, Any] = {
        "sizes": sizes,
        "tokens_per_parameter": 0.5,
        "learning_rate": WidthRule(4e-3, 16, 0.5),
    }
    return ScalingConfig(**given | changes)


def rung(width: int, seed: int, error: float = 0.0, tokenizer: str = "t") -> Result:
    """On the planted law L = 2 + 300 C^-0.16 of networks of 1000 width^1.5 parameters."""
    parameters = round(1000 * width**1.5)
    tokens = 10.0 * parameters
    loss = (2 + 300 * (6 * parameters * tokens) ** -0.16) * (1 + error)
    return planted(
        {"size": f"h{width}x1", "seed": seed},
        parameters,
        [(0, 9.0), (tokens / 2, loss + 0.2), (tokens, loss)],
        tokenizer,
    )


def finished(widths: tuple[int, ...] = WIDTHS) -> list[Result]:
    errors = (0.001, -0.001, 0.0005, 0.0, -0.0015, 0.001, 0.0012, -0.0007, 0.0, 0.0004)
    return [rung(width, seed, errors[2 * place + seed - 1]) for place, width in enumerate(widths) for seed in (1, 2)]


def test_trials_have_their_budgets_and_rates(tmp_path: Path) -> None:
    base = runs(tmp_path)
    trials = ladder().trials(base, [1, 2], None)
    plan = plan_trials(trials, base, tmp_path)
    assert len(plan) == 10
    for trial in plan:
        tokens = trial.last_step * 4 * SEQ_LEN
        assert abs(tokens - 0.5 * trial.parameters) <= 2 * SEQ_LEN
        width = trial.config.model.selected.hidden_size
        assert trial.config.optim.lr == pytest.approx(4e-3 * (16 / width) ** 0.5)
    assert {trial.config.run.seed for trial in plan} == {1, 2}


def test_ladder_of_a_network_with_heads_of_keys_and_values(tmp_path: Path) -> None:
    """As many as other heads: with those of the base config, 4, the rung of two heads could not be built."""
    base = {**BASE, "train": {**BASE["train"], "micro_batch_size": 4}}
    sizes = [NetworkSize(8 * place, 16, 1, place) for place in (1, 2, 3, 4, 6)]
    plan = plan_trials(ladder(sizes=sizes).trials(base, [1], None), base, tmp_path)
    assert [trial.config.model.selected.n_kv_heads for trial in plan] == [1, 2, 3, 4, 6]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ladder((8, 16, 24, 32)), r"scaling.sizes: 4 networks are too few; give 5"),
        (ladder((8, 8, 16, 24, 32)), r"scaling.sizes: two networks are h8x1"),
        (ladder(tokens_per_parameter=0.0), r"scaling.tokens_per_parameter: 0.0 must be above 0"),
        (ladder(learning_rate=WidthRule(-1.0, 16, 0.5)), r"scaling.learning_rate: lr -1"),
    ],
)
def test_senseless_ladders_are_refused(config: ScalingConfig, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        config.trials(runs(tmp_path), [1], None)


def test_network_that_cannot_be_is_refused(tmp_path: Path) -> None:
    sizes = [NetworkSize(9 * place, 16, 1, 2) for place in range(1, 6)]
    with pytest.raises(ConfigError, match=r"n_heads 2 does not divide"):
        ladder(sizes=sizes).trials(runs(tmp_path), [1], None)


def test_planted_ladder_predicts_its_largest() -> None:
    findings = ladder().analyse(results_of(*finished()), [1, 2])
    assert findings.numbers["largest"] == "h48x1"
    assert abs(findings.numbers["relative_error"]) < 0.004
    exponent = findings.numbers["law_of_all"]["exponent"]
    assert exponent["low"] <= 0.16 <= exponent["high"]
    assert [claim.verdict for claim in findings.claims] == ["confirmed", "confirmed"]
    assert findings.claims[1].paper == "a = 0.214, L_inf = 1.692"
    assert [picture.name for picture in findings.pictures] == ["loss_curves", "scaling_law"]


def test_largest_that_departs_from_the_law_is_told() -> None:
    results = [
        result if result.settings["size"] != "h48x1" else rung(48, result.settings["seed"], 0.15)
        for result in finished()
    ]
    findings = ladder().analyse(results_of(*results), [1, 2])
    assert findings.numbers["relative_error"] < -0.1
    assert findings.claims[0].verdict == "not confirmed"


def test_diverged_rung_is_done_without() -> None:
    widths = (8, 16, 24, 32, 48)
    gone = LeftOut("size_h64", "diverged: its held-out loss is not finite")
    findings = ladder((*widths, 64)).analyse(results_of(*finished(widths), left_out=(gone,)), [1, 2])
    assert findings.numbers["largest"] == "h48x1"


def test_too_few_rungs_are_refused_with_what_is_missing() -> None:
    gone = LeftOut("sizeh48x1_seed1", "diverged: its held-out loss is not finite")
    with pytest.raises(DataError, match=r"too few points: 4 rungs have finished.*sizeh48x1_seed1: diverged"):
        ladder().analyse(results_of(*finished(WIDTHS[:4]), left_out=(gone,)), [1, 2])


def test_tokenizers_are_not_mixed() -> None:
    with pytest.raises(DataError, match=r"differ in their tokenizer"):
        ladder().analyse(results_of(*finished(), rung(64, 1, tokenizer="other")), [1, 2])


def test_ladder_of_tiny_networks_runs_through(tmp_path: Path) -> None:
    study = {"dir": str(tmp_path / "study"), "base": [str(write_runs(tmp_path))], "seeds": [1], "workers": 2}
    sizes = [{"hidden_size": w, "ffn_size": 2 * w, "n_layers": 1, "n_heads": 2} for w in WIDTHS]
    rule = {"lr": 1e-2, "width": 16, "power": 0.5}
    scaling = {"sizes": sizes, "tokens_per_parameter": 0.1, "learning_rate": rule}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"study": study, "scaling": scaling}))
    page = run_study(parse_arguments(StudyConfig, "", ["--config", str(tmp_path / "study.yaml")]))
    assert page is not None
    assert page.exists()
    found = orjson.loads((tmp_path / "study" / "findings.json").read_bytes())
    assert found["cost"]["trials"] == 5
    losses = [float(row[5]) for row in found["tables"][0]["rows"]]
    assert losses == sorted(losses, reverse=True)  # larger, and trained for longer
    assert found["numbers"]["measured"] == pytest.approx(losses[-1], abs=1e-3)
    assert (tmp_path / "study" / "scaling_law.png").exists()
