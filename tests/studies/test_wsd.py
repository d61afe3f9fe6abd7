"""WSD: branches that continue a stable run are what an unbroken run is, read what their cosine runs read, and planted
losses give the verdicts that were planted."""

import copy
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindllm_engine.command_line import read_yaml
from mindllm_engine.data.plan import Plan, SourceFacts
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.optim.schedules import learning_rate
from mindllm_engine.studies.report import read_findings
from mindllm_engine.studies.results import read_results
from mindllm_engine.studies.study import StudyConfig, StudySection, run_study
from mindllm_engine.studies.trials import PlannedTrial, Trial, plan_trials
from mindllm_engine.studies.wsd.experiment import InstructionConfig, WsdConfig
from mindllm_engine.training.loop import pretrain
from mindllm_engine.training.metrics import read_metrics
from tests.studies.planted_results import planted_results
from tests.studies.stride_text import write_base

SOURCES = {"en": ("en", 3), "zh": ("zh", 20), "ask": ("en", 40)}
TEXT = {"weights": {"en": 1, "zh": 1}}
SEEDS = [1, 2, 3]


def config(**changes: Any) -> WsdConfig:
    return WsdConfig(
        **{
            "budgets": [20, 40],
            "compared_at": 40,
            "decay": 0.2,
            "other_decays": [0.1, 0.4],
            "instruction": InstructionConfig({"ask": 1}, steps=4),
        }
        | changes
    )


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("wsd"), SOURCES, data={"blocks": [TEXT]})


@pytest.fixture(scope="module")
def base(base_path: Path) -> dict[str, Any]:
    return read_yaml(base_path)


@pytest.fixture(scope="module")
def grid(base: dict[str, Any]) -> list[PlannedTrial]:
    return plan_trials(config().trials(base, SEEDS, None), base, Path("somewhere"))


def named(planned: list[PlannedTrial]) -> dict[str, PlannedTrial]:
    return {trial.name: trial for trial in planned}


def plan_of(trial: PlannedTrial) -> Plan:
    facts = [SourceFacts(name, lang, name, 39600, 1200, "") for name, (lang, _) in SOURCES.items()]
    run = trial.config
    samples = run.train.steps * run.train.global_batch_size
    return Plan(facts, run.data.blocks, run.data.seq_len, run.run.seed, samples)


def test_branches_leave_at_the_top_and_end_at_the_bottom(grid: list[PlannedTrial]) -> None:
    branches = [trial for trial in grid if trial.trial.settings["kind"] in ("wsd", "mixed")]
    assert len(branches) == 3 * (2 + 2 + 1)
    for trial in branches:
        optim, steps = trial.config.optim, trial.config.train.steps
        rates = [learning_rate(optim.schedule, optim.lr, step, steps) for step in range(steps)]
        assert rates[trial.first_step - 1] == optim.lr > rates[trial.first_step]
        assert rates[-1] == pytest.approx(optim.schedule.min_lr)
        share = trial.trial.settings.get("decay", 0.2)
        assert steps - trial.first_step == round(share * steps)
    for trial in grid:
        kind, optim = trial.trial.settings["kind"], trial.config.optim
        if kind in ("stable", "cosine"):
            assert (optim.schedule.kind, optim.lr) == ("constant" if kind == "stable" else "cosine", 1e-2)
        if "tuned" in kind:
            assert (optim.schedule.kind, optim.lr) == ("constant", 1e-3)


def test_branch_and_cosine_run_read_the_same_samples(grid: list[PlannedTrial]) -> None:
    found = named(grid)
    for budget in (20, 40):
        branch, cosine = found[f"decay0.2_of{budget}_seed2"], found[f"cosine{budget}_seed2"]
        samples = np.arange(budget * 8)
        for ours, theirs in zip(plan_of(branch).locate(samples), plan_of(cosine).locate(samples), strict=True):
            assert np.array_equal(ours, theirs)
        before = np.arange(branch.first_step * 8)
        assert branch.parent is not None
        for ours, theirs in zip(plan_of(branch).locate(before), plan_of(branch.parent).locate(before), strict=True):
            assert np.array_equal(ours, theirs)


def test_instructions_are_as_many_as_the_arms_say(grid: list[PlannedTrial]) -> None:
    found = named(grid)
    decay = 8 * 8  # samples of a decay of 8 steps
    counts = {}
    for name in ("decay0.2_of40", "mixed40", "mixed_tuned40", "plain_tuned40", "plain_tuned_longer40"):
        plan = plan_of(found[f"{name}_seed1"])
        sources, _ = plan.locate(np.arange(plan.samples))
        names = np.array([source.name for source in plan.sources])[sources]
        counts[name] = (len(names), int((names == "ask").sum()))
        assert abs(int((names == "en").sum()) - int((names == "zh").sum())) <= 6
    assert counts["decay0.2_of40"] == (320, 0)
    assert counts["mixed40"] == (320, decay // 2)
    assert counts["mixed_tuned40"] == (320 + 32, decay // 2 + 32)
    assert counts["plain_tuned40"] == (320 + 32, 32)
    assert counts["plain_tuned_longer40"] == (320 + 32 + decay // 2, 32 + decay // 2)


def test_a_larger_budget_changes_no_trial_that_was_there(base: dict[str, Any], grid: list[PlannedTrial]) -> None:
    small = {name: trial for name, trial in named(grid).items() if name.endswith("seed1")}
    trials = config(budgets=[20, 40, 80]).trials(base, [1], None)
    large = named(plan_trials(trials, base, Path("somewhere")))
    assert {name: trial.identity for name, trial in small.items()} == {name: large[name].identity for name in small}
    new = {"stable64", "decay0.2_of80", "cosine80", "cosine80_until40", "cosine20_until40"}
    assert {name.removesuffix("_seed1") for name in large.keys() - small.keys()} == new


def test_cosine_runs_of_other_periods_end_at_the_same_step(base: dict[str, Any]) -> None:
    three = config(budgets=[20, 40, 80])
    found = named(plan_trials(three.trials(base, SEEDS, None), base, Path("somewhere")))
    stopped, prolonged, fitting = (
        found[f"{name}_seed2"] for name in ("cosine80_until40", "cosine20_until40", "cosine40")
    )
    assert [trial.last_step for trial in (stopped, prolonged, fitting)] == [40, 40, 40]
    rates = {}
    for trial in (stopped, prolonged, fitting, found["cosine20_seed2"], found["cosine80_seed2"]):
        optim, steps = trial.config.optim, trial.config.train.steps
        rates[trial.name] = [learning_rate(optim.schedule, optim.lr, step, steps) for step in range(steps)]
    assert rates["cosine80_until40_seed2"][:40] == rates["cosine80_seed2"][:40]
    assert rates["cosine20_until40_seed2"][20:] == pytest.approx([rates["cosine20_seed2"][-1]] * 20)
    assert (prolonged.parent, prolonged.first_step) == (found["cosine20_seed2"], 20)
    for ours, theirs in zip(
        plan_of(stopped).locate(np.arange(40 * 8)), plan_of(fitting).locate(np.arange(40 * 8)), strict=True
    ):
        assert np.array_equal(ours, theirs)
    before = np.arange(20 * 8)  # what the prolonged run has read until it goes on
    for ours, theirs in zip(plan_of(prolonged).locate(before), plan_of(prolonged.parent).locate(before), strict=True):
        assert np.array_equal(ours, theirs)

    def losses(trial: Trial) -> list[dict[str, Any]]:
        records = planted(trial)
        worse = {"cosine_stopped": 0.2, "cosine_prolonged": 0.1}.get(trial.settings["kind"], 0.0)
        for key in ("heldout_loss/en", "heldout_loss/zh"):
            records[-1][key] += worse
        return records

    findings = three.analyse(planted_results(list(found.values()), losses), SEEDS)
    claims = [claim for claim in findings.claims if "a cosine run of period" in claim.statement]
    assert [claim.verdict for claim in claims] == ["confirmed", "confirmed"]
    for claim, difference in zip(claims, (0.2, 0.1), strict=True):
        assert abs(float(re.findall(r"-?\d+\.\d+", claim.here)[0]) - difference) < 0.005
    assert {"40 steps, cosine, stopped", "40 steps, cosine, prolonged"} <= {row[0] for row in findings.tables[0].rows}


def planted(trial: Trial) -> list[dict[str, Any]]:
    """WSD ends 0.02 below cosine; half the decay misses 0.1, twice the decay gains 0.002; instructions in the decay
    gain 0.5 on them over those after it. Seeds differ by 0.3, and pairs by some 0.001."""
    kind, steps, seed = (trial.settings[key] for key in ("kind", "steps", "seed"))
    wobble = 0.001 * math.sin(7 * seed + steps + len(kind))
    text = 3 + 10 / steps + 0.3 * seed + wobble
    text += {"wsd": -0.02, "stable": 0.3}.get(kind, 0.0)
    text += {0.1: 0.1, 0.4: -0.002}.get(trial.settings.get("decay", 0), 0.0)
    ask = {"mixed": 4.0, "mixed_tuned": 3.0, "plain_tuned": 3.5, "plain_tuned_longer": 3.4}.get(kind, 6.0) + wobble
    losses = {"heldout_loss/en": text - 1, "heldout_loss/zh": text + 1, "heldout_loss/ask": ask + 0.1 * seed}
    return [
        {"step": 0, "heldout_loss": 9.0, "heldout_loss/en": 9.0, "heldout_loss/zh": 9.0, "heldout_loss/ask": 9.0},
        {"step": steps, "heldout_loss": text, "loss": text, **losses},
    ]


def test_planted_losses_give_the_planted_verdicts(grid: list[PlannedTrial]) -> None:
    findings = config().analyse(planted_results(grid, planted), SEEDS)
    verdicts = [claim.verdict for claim in findings.claims]
    assert verdicts == ["confirmed"] * len(verdicts)
    statements = "\n".join(claim.statement for claim in findings.claims)
    for part in ("Of 20 steps", "Of 40 steps", "suffices: 40 %", "10 % of 40 steps falls short of 20 %"):
        assert part in statements
    for part, difference in (
        ("Of 40 steps", -0.02),
        ("falls short", 0.1),
        ("at equal tokens", -0.5),
        ("more tokens in all", -0.4),
    ):
        claim = next(claim for claim in findings.claims if part in claim.statement)
        value, low, high = (float(number) for number in re.findall(r"-?\d+\.\d+", claim.here))
        assert low - 0.0005 <= difference <= high + 0.0005
        assert abs(value - difference) < 0.003
    cost = findings.tables[1].rows  # 32 stable steps and decays of 4 and 8, against 20 and 40
    assert [row[1] for row in cost] == ["44", "60"]


def test_the_reverse_is_not_confirmed(grid: list[PlannedTrial]) -> None:
    def reversed_losses(trial: Trial) -> list[dict[str, Any]]:
        records = planted(trial)
        for key in ("heldout_loss/en", "heldout_loss/zh"):
            records[-1][key] += {"cosine": -1.0, "wsd": 0.5 if trial.settings.get("decay") != 0.1 else -1.0}.get(
                trial.settings["kind"], 0.0
            )
        records[-1]["heldout_loss/ask"] += 2.0 * (trial.settings["kind"] == "mixed_tuned")
        return records

    findings = config().analyse(planted_results(grid, reversed_losses), SEEDS)
    refuted = [claim.statement for claim in findings.claims if claim.verdict == "not confirmed"]
    assert len(refuted) == 6  # both ends, the fall, the shortest decay, and instructions twice
    assert not any("suffices" in statement for statement in refuted)


def test_trials_left_out_make_claims_undecidable_and_none_left_an_error(grid: list[PlannedTrial]) -> None:
    diverged = "diverged: its loss is not finite"
    gone = {trial.name: diverged for trial in grid if trial.trial.settings["kind"] == "mixed_tuned"}
    gone |= {f"cosine20_seed{seed}": diverged for seed in SEEDS}
    findings = config().analyse(planted_results(grid, planted, gone), SEEDS)
    undecided = [claim for claim in findings.claims if claim.verdict == "not decidable"]
    assert len(undecided) == 3
    assert all(diverged in claim.reason for claim in undecided)
    gone |= {f"cosine40_seed{seed}": "500 M parameters need 9 GiB" for seed in SEEDS}
    with pytest.raises(DataError, match=r"too few points: no budget has a branch and a cosine run.*seed1 \(diverged"):
        config().analyse(planted_results(grid, planted, gone), SEEDS)


def test_one_seed_decides_nothing(grid: list[PlannedTrial]) -> None:
    of_seed = [trial for trial in grid if trial.trial.settings["seed"] == 1]
    findings = config().analyse(planted_results(of_seed, planted), [1])
    assert {claim.verdict for claim in findings.claims if "cost less" not in claim.statement} == {"not decidable"}


def test_runs_of_two_tokenizers_are_refused(grid: list[PlannedTrial]) -> None:
    results = planted_results(grid, planted)
    results.finished[-1].text["tokenizer"] = "another"
    with pytest.raises(DataError, match="differ in their tokenizer"):
        config().analyse(results, SEEDS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": []}, r"wsd\.budgets: \[\] must be different"),
        ({"budgets": [40, 40]}, r"wsd\.budgets"),
        ({"compared_at": 30}, r"wsd\.compared_at: 30 must be one of"),
        ({"other_decays": [0.2]}, r"give different shares"),
        ({"other_decays": [1.5]}, r"give different shares in \(0, 1\)"),
        ({"other_decays": [0.001]}, r"0\.001 of 40 steps is no step"),
        ({"budgets": [3, 40]}, r"within optim\.schedule\.warmup_steps = 3"),
        ({"equal_within": math.nan}, r"wsd\.equal_within"),
        ({"instruction": InstructionConfig({"en": 1}, 4)}, r"en is read in pre-training already"),
        ({"instruction": InstructionConfig({}, 4)}, r"name one source at least"),
        ({"instruction": InstructionConfig({"ask": 1}, 0)}, r"wsd\.instruction\.steps: 0"),
        ({"instruction": InstructionConfig({"ask": 1}, 4, share=1.0)}, r"wsd\.instruction\.share: 1\.0"),
    ],
)
def test_grids_that_make_no_sense_are_refused(base: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes).trials(base, SEEDS, None)


def test_runs_that_do_not_suit_are_refused(base: dict[str, Any]) -> None:
    for change, message in (
        ({"blocks": [TEXT, TEXT]}, "one block without `tokens`"),
        ({"blocks": [{**TEXT, "tokens": 1024}]}, "one block without `tokens`"),
        ({"blocks": [{"languages": {"en": 1}}]}, "must give `weights`, and nothing but"),
    ):
        with pytest.raises(ConfigError, match=message):
            config().trials({**base, "data": {**base["data"], **change}}, SEEDS, None)
    without_end = copy.deepcopy(base)
    without_end["optim"]["schedule"]["min_lr"] = 0.0
    with pytest.raises(ConfigError, match=r"optim\.schedule\.min_lr: what follows the decay"):
        config().trials(without_end, SEEDS, None)


def test_a_branch_of_a_whole_study_is_an_unbroken_run(tmp_path: Path, base_path: Path, base: dict[str, Any]) -> None:
    wsd = config(budgets=[5, 10, 20], compared_at=20, other_decays=[0.1])
    study = StudyConfig(StudySection(str(tmp_path / "study"), [str(base_path)], seeds=[1], workers=2), wsd=wsd)
    assert run_study(study) == tmp_path / "study" / "report.html"
    findings = read_findings(tmp_path / "study")
    assert (len(findings.left_out), len(findings.claims), len(findings.tables)) == (0, 11, 3)
    assert findings.cost.trials == 4 + 4 + 3 + 2 + 4
    planned = plan_trials(wsd.trials(base, [1], None), base, tmp_path / "study" / "trials")
    unbroken = copy.deepcopy(named(planned)["decay0.2_of20_seed1"].config)
    unbroken.run.dir = str(tmp_path / "unbroken")
    pretrain(unbroken)
    branch = read_results(planned).named("decay0.2_of20_seed1")
    assert branch is not None
    last = [record for record in read_metrics(tmp_path / "unbroken") if "heldout_loss" in record][-1]
    assert last["heldout_loss"] == branch.loss
    assert branch.tokens == 20 * 8 * 32
