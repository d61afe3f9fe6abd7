"""The batch-size study: its grid, planted optima and L(N, D), what is refused, and a real one of tiny networks."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import yaml

from mindllm_engine.command_line import parse_arguments
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.optim.schedules import learning_rate
from mindllm_engine.studies.batch_size.data_law import DataLawConfig
from mindllm_engine.studies.batch_size.experiment import BatchSizeConfig, paper_batch
from mindllm_engine.studies.batch_size.optima import Curve, fit_batch_law, levels_of, optimum_at
from mindllm_engine.studies.laws import log_tokens_per_parameter, loss_law
from mindllm_engine.studies.networks import NetworkSize, WidthRule, layer_parameters_of
from mindllm_engine.studies.results import Result
from mindllm_engine.studies.study import StudyConfig, run_study
from mindllm_engine.studies.trials import plan_trials
from tests.studies.tiny_runs import SEQ_LEN, planted, results_of, runs, write_runs

BATCHES = (2, 4, 8, 16, 32, 64)
COEFFICIENT, EXPONENT = 6e5, 5.0
LAW = np.array([0.4, 100.0, 0.34, 103.0, 0.28])


def size(width: int) -> NetworkSize:
    return NetworkSize(width, 2 * width, 1, 2)


def config(**changes: Any) -> BatchSizeConfig:
    data_law = DataLawConfig([size(8), size(16), size(24)], tokens=[4e3, 8e3, 16e3])
    given: dict[str, Any] = {
        "sizes": [size(16)],
        "batches": [2, 4, 8],
        "tokens": 4e3,
        "evaluations": 5,
        "learning_rate": WidthRule(4e-3, 16, 0.5),
        "data_law": data_law,
    }
    return BatchSizeConfig(**given | changes)


def planted_curve(batch: float, coefficient: float = COEFFICIENT, evaluations: int = 60) -> list[tuple[float, float]]:
    """(tokens, loss) of a batch in tokens: a loss L takes 3e3 exp(8 - L) tokens at the best batch c L^-p, and as many
    more as the logarithm of the batch lies off it, squared."""
    losses = np.linspace(7.5, 3.0, 4000)
    off = math.log(batch) - np.log(coefficient * losses**-EXPONENT)
    tokens = 3e3 * np.exp(8 - losses) * np.exp(0.15 * off**2)
    points = np.linspace(1e4, 3e5, evaluations)
    return [(float(t), float(np.interp(t, np.maximum.accumulate(tokens), losses))) for t in points]


def batch_runs(seeds: tuple[int, ...] = (1, 2, 3), coefficient: float = COEFFICIENT) -> list[Result]:
    return [
        planted(
            {"experiment": "batch_size", "size": "h16x1", "samples": samples, "seed": seed},
            10_000,
            [(0, 9.0), *planted_curve(samples * SEQ_LEN, coefficient * (1 + 0.02 * seed))],
        )
        for seed in seeds
        for samples in BATCHES
    ]


def branch_runs(tokenizer: str = "t") -> list[Result]:
    """On the planted L(N, D), in bits per byte, with a noise of 0.2 %."""
    rng = np.random.default_rng(1)
    found = []
    for n in (2e5, 4e5, 8e5, 16e5):
        for d in (1e5, 4e5, 16e5, 64e5):
            loss = float(4 * loss_law(np.array(n), np.array(d), LAW) * np.exp(0.002 * rng.standard_normal()))
            settings = {"experiment": "data_law", "part": "decayed", "size": f"h{n:.0f}", "tokens": d, "seed": 1}
            found.append(planted(settings, int(n) + 10**6, [(0, 90.0), (d, loss)], tokenizer, embedding=10**6))
    return found


def test_grid_has_equal_tokens_and_one_rate(tmp_path: Path) -> None:
    base = runs(tmp_path)
    plan = [
        trial for trial in plan_trials(config().trials(base, [1, 2], None), base, tmp_path) if "samples" in trial.name
    ]
    assert len(plan) == 6
    for trial in plan:
        train = trial.config.train
        assert abs(train.steps * train.global_batch_size * SEQ_LEN - 4e3) <= train.global_batch_size * SEQ_LEN
        assert trial.config.optim.lr == 4e-3
        assert trial.config.optim.schedule.kind == "constant"
        assert 5 <= train.steps // train.eval_every <= 6


def test_branches_leave_the_stable_run_where_they_decay(tmp_path: Path) -> None:
    base = runs(tmp_path)
    trials = [trial for trial in config().trials(base, [3], None) if trial.settings["experiment"] == "data_law"]
    plan = plan_trials(trials, base, tmp_path)
    assert len(plan) == 3 * (3 + 3)
    branches = [trial for trial in plan if trial.trial.settings["part"] == "decayed"]
    for trial in branches:
        assert trial.parent is not None
        assert trial.parent.last_step == trial.first_step
        schedule, peak = trial.config.optim.schedule, trial.config.optim.lr
        rates = [learning_rate(schedule, peak, step, trial.last_step) for step in range(trial.last_step)]
        assert rates[trial.first_step - 1] == peak > rates[trial.first_step]
        assert rates[-1] == pytest.approx(peak / 10)
        # What the parent has read keeps its blocks.
        ours, theirs = (one.config.data.blocks for one in (trial, trial.parent))
        assert ours[: len(theirs)] == theirs
        assert len(ours) == len(theirs) + 1
        assert sum(block.tokens or 0 for block in ours) == trial.last_step * 4 * SEQ_LEN
    # A network costs one run to the largest budget and a tenth of each: O(m C).
    steps = sum(trial.last_step - trial.first_step for trial in plan) / 3
    assert steps == pytest.approx(125 + 0.1 * (31 + 62), abs=4)


def test_larger_budget_trains_only_what_is_new(tmp_path: Path) -> None:
    base = runs(tmp_path)
    sizes = config().data_law.sizes
    grown = config(data_law=DataLawConfig(sizes, tokens=[4e3, 8e3, 16e3, 32e3]))
    before, after = (
        {trial.identity for trial in plan_trials(one.trials(base, [1], None), base, tmp_path)}
        for one in (config(), grown)
    )
    assert before < after
    assert len(after - before) == 2 * len(sizes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batches": [2, 4]}, r"batch_size.batches: \[2, 4\] must be 3 different numbers"),
        ({"batches": [2, 2, 4]}, r"batch_size.batches"),
        ({"tokens": 0.0}, r"batch_size.tokens: 0.0 must be above 0"),
        ({"tokens": 300.0}, r"batch_size.batches: 4 samples leave 2 steps for 5 evaluations"),
        ({"evaluations": 1}, r"batch_size.evaluations: 1 are too few"),
        ({"data_law": DataLawConfig([size(8)] * 3, tokens=[1e4, 2e4, 3e4])}, r"two networks are h8x1"),
        ({"data_law": DataLawConfig([size(8), size(16), size(24)])}, r"data_law.tokens: give this or tokens_per"),
        ({"data_law": DataLawConfig([size(8), size(16), size(24)], tokens=[1e4, 2e4])}, r"must be 3 different budgets"),
        ({"data_law": DataLawConfig([size(8), size(16), size(24)], tokens=[100, 1e4, 2e4])}, r"would branch at steps"),
    ],
)
def test_senseless_grids_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes).trials(runs(tmp_path), [1], None)


def test_blocks_with_budgets_are_refused(tmp_path: Path) -> None:
    base = runs(tmp_path)
    base["data"]["blocks"] = [{"tokens": 10000}]
    with pytest.raises(ConfigError, match=r"data.blocks: the branches need one block without a token budget"):
        config().trials(base, [1], None)


def test_level_is_passed_between_evaluations() -> None:
    curve = Curve([100.0, 200.0, 400.0], [6.0, 5.0, 4.0])
    assert curve.passes(4.5) == pytest.approx(200 * 2**0.5)
    assert curve.passes(6.0) is None
    assert curve.passes(3.0) is None


def test_planted_optimum_is_found_and_edges_are_none() -> None:
    curves = {float(b * SEQ_LEN): Curve(*zip(*planted_curve(b * SEQ_LEN), strict=True)) for b in BATCHES}
    optima = [optimum_at(level, curves) for level in levels_of(curves)]
    inner = [one for one in optima if one.batch is not None]
    assert len(inner) >= 4
    for one in inner:
        assert one.batch == pytest.approx(COEFFICIENT * one.level**-EXPONENT, rel=0.15)
    only_large = {batch: curve for batch, curve in curves.items() if batch >= 16 * SEQ_LEN}
    edges = [optimum_at(one.level, only_large) for one in inner if one.batch and one.batch < 12 * SEQ_LEN]
    assert edges
    assert all(one.batch is None and "edge of the grid: the smallest" in one.reason for one in edges)


def test_law_needs_optima() -> None:
    curves = {64.0: Curve([1.0, 2.0], [6.0, 5.0]), 128.0: Curve([1.0, 2.0], [6.0, 5.0])}
    assert levels_of(curves) == []
    assert fit_batch_law({1: [optimum_at(5.5, curves)]}) is None


def test_papers_law() -> None:
    assert paper_batch(2.0) == pytest.approx(1.21e9 / 2**6.24)


def test_planted_study_gives_its_laws_back() -> None:
    findings = config().analyse(results_of(*batch_runs(), *branch_runs()), [1, 2, 3])
    exponent = findings.numbers["batch_law"]["exponent"]
    assert exponent["value"] == pytest.approx(EXPONENT, rel=0.15)
    ratio, compute = findings.numbers["data_law"]["tokens_per_parameter"], findings.numbers["data_law"]["compute"]
    assert compute == pytest.approx(6 * 16e5 * 64e5)
    assert ratio["low"] <= math.exp(log_tokens_per_parameter(compute, LAW)) <= ratio["high"]
    verdicts = {claim.statement.split(":")[0]: claim.verdict for claim in findings.claims}
    assert verdicts["The optimal batch grows as the loss falls"] == "confirmed"
    assert verdicts["alpha is above beta"] in ("confirmed", "not decidable")
    assert [picture.name for picture in findings.pictures] == [
        "batch_levels",
        "batch_law",
        "data_law",
        "data_law_optimum",
    ]


def test_an_optimal_ratio_beyond_the_runs_decides_nothing() -> None:
    """Of the planted law the optimum lies among the runs; of the half with few tokens a parameter, beyond them."""
    few = [run for run in branch_runs() if run.tokens / run.layer_parameters <= 4]
    for branches, held in ((branch_runs(), True), (few, False)):
        findings = config().analyse(results_of(*batch_runs(), *branches), [1, 2, 3])
        law = findings.numbers["data_law"]
        least, most = law["measured_tokens_per_parameter"]
        assert (least <= law["tokens_per_parameter"]["value"] <= most) is held
        claim = next(claim for claim in findings.claims if "192 tokens a parameter" in claim.statement)
        assert claim.verdict == ("not confirmed" if held else "not decidable")
        assert ("extrapolation beyond the runs' D / N" in claim.reason) is not held


@pytest.mark.parametrize(("name", "count"), [("minicpm_1.2b", 1_247_442_432), ("minicpm_2.4b", 2_442_057_984)])
def test_parameters_are_counted_as_the_paper_counts_them(name: str, count: int) -> None:
    """MiniCPM, Table 2, without embeddings."""
    base = yaml.safe_load((Path(__file__).parents[2] / "configs" / f"{name}.yaml").read_text())
    assert layer_parameters_of({}, base) == count


def test_optima_beyond_the_grid_decide_nothing() -> None:
    findings = config().analyse(results_of(*batch_runs(coefficient=COEFFICIENT * 1000), *branch_runs()), [1, 2, 3])
    assert findings.claims[0].verdict == "not decidable"
    assert "edge of the grid" in findings.claims[0].reason
    assert findings.numbers["batch_law"] is None


def test_too_few_branches_are_refused() -> None:
    with pytest.raises(DataError, match=r"L\(N, D\): too few points: 5 for 5 unknowns"):
        config().analyse(results_of(*batch_runs(), *branch_runs()[:5]), [1, 2, 3])
    with pytest.raises(DataError, match=r"no run of the grid has finished"):
        config().analyse(results_of(*branch_runs()), [1, 2, 3])


def test_tokenizers_are_not_mixed() -> None:
    mixed = [*branch_runs()[:-1], branch_runs("other")[-1]]
    with pytest.raises(DataError, match=r"L\(N, D\): .* differ in their tokenizer"):
        config().analyse(results_of(*batch_runs(), *mixed), [1, 2, 3])


def test_study_of_tiny_networks_runs_through(tmp_path: Path) -> None:
    study = {"dir": str(tmp_path / "study"), "base": [str(write_runs(tmp_path))], "seeds": [1], "workers": 2}
    sizes = [{"hidden_size": w, "ffn_size": 2 * w, "n_layers": 1, "n_heads": 2} for w in (8, 16, 24)]
    batch_size = {
        "sizes": sizes[1:2],
        "batches": [2, 4, 8],
        "tokens": 3000,
        "evaluations": 4,
        "learning_rate": {"lr": 1e-2, "width": 16, "power": 0.5},
        "data_law": {"sizes": sizes, "tokens": [1000, 2000, 4000]},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"study": study, "batch_size": batch_size}))
    page = run_study(parse_arguments(StudyConfig, "", ["--config", str(tmp_path / "study.yaml")]))
    assert page is not None
    assert page.exists()
    found = orjson.loads((tmp_path / "study" / "findings.json").read_bytes())
    assert found["cost"]["trials"] == 3 + 3 * (3 + 3)
    law = found["numbers"]["data_law"]["law"]
    assert all(np.isfinite(law[name]["value"]) for name in law)
    assert len(found["claims"]) == 5
