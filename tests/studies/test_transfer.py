"""Transfer: two languages that contradict each other, of which the first is known to be forgotten; planted numbers."""

import math
from pathlib import Path
from typing import Any

import pytest

from mindllm_engine.command_line import read_yaml
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.studies.report import read_findings
from mindllm_engine.studies.study import StudyConfig, StudySection, run_study
from mindllm_engine.studies.transfer import TransferConfig
from mindllm_engine.studies.trials import PlannedTrial, Trial, plan_trials
from tests.studies.planted_results import planted_results
from tests.studies.stride_text import ENTROPY, write_base

SOURCES = {"en_a": ("en", 3), "en_b": ("en", 3), "zh_a": ("zh", 20)}
SEEDS = [1, 2, 3]
BITS = {  # way -> bits per byte of English and Chinese at the start and the end
    "first": ((5.0, 5.0), (2.0, 6.0)),
    "zh": ((2.0, 6.0), (2.5, 2.2)),
    "both": ((2.0, 6.0), (1.8, 2.4)),
    "bilingual": ((5.0, 5.0), (2.1, 2.1)),
}


def config(**changes: Any) -> TransferConfig:
    return TransferConfig(**{"steps": 10, "transfers": {"zh": {"zh": 1}, "both": {"zh": 1, "en": 1}}} | changes)


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("transfer"), SOURCES, data={"blocks": [{"max_epochs": 100}]})


@pytest.fixture(scope="module")
def base(base_path: Path) -> dict[str, Any]:
    return read_yaml(base_path)


@pytest.fixture(scope="module")
def grid(base: dict[str, Any]) -> list[PlannedTrial]:
    return plan_trials(config().trials(base, SEEDS, None), base, Path("somewhere"))


def planted(trial: Trial) -> list[dict[str, Any]]:
    seed, way = trial.settings["seed"], trial.settings["way"]
    wobble = 0.005 * math.sin(5 * seed + len(way))
    records = []
    for step, (en, zh) in zip((0, trial.changes["train.steps"]), BITS[way], strict=True):
        bits = {"en_a": en - 0.5, "en_b": en + 0.5, "zh_a": zh}
        losses = {f"heldout_bpb/{name}": value + 0.2 * seed + wobble for name, value in bits.items()}
        records.append({"step": step, "heldout_loss": en + zh, **losses})
    return records


def test_ways_take_equal_steps_and_the_second_stage_starts_from_the_first(grid: list[PlannedTrial]) -> None:
    found = {trial.name: trial for trial in grid}
    assert len(found) == 4 * len(SEEDS)
    for seed in SEEDS:
        assert found[f"bilingual_seed{seed}"].last_step == 10
        for name in ("zh", "both"):
            transfer, first = found[f"{name}_seed{seed}"], found[f"first_seed{seed}"]
            assert transfer.last_step + first.last_step == 10
            assert transfer.parent is first
            assert transfer.config.run.init_from == str(first.folder)
            assert transfer.config.run.seed != first.config.run.seed
    languages = {trial.trial.settings["way"]: trial.config.data.blocks[0].languages for trial in grid}
    assert languages == {
        "first": {"en": 1}, "zh": {"zh": 1}, "both": {"zh": 1, "en": 1}, "bilingual": {"en": 1, "zh": 1}
    }  # fmt: skip


def test_planted_bits_give_the_planted_verdicts(grid: list[PlannedTrial]) -> None:
    findings = config().analyse(planted_results(grid, planted), SEEDS)
    verdicts = {claim.statement: claim.verdict for claim in findings.claims}
    expected = {  # both languages, Chinese, English, forgetting
        "zh": ["confirmed", "confirmed", "confirmed", "confirmed"],
        "both": ["not decidable", "confirmed", "not confirmed", "not confirmed"],
    }
    assert list(verdicts.values()) == expected["zh"] + expected["both"]
    forgets = next(claim for claim in findings.claims if "`zh` forgets" in claim.statement)
    assert forgets.here.startswith("after the transfer less before it: 0.500 bits per byte")
    rows = {row[0]: row[1] for row in findings.tables[0].rows}
    assert set(rows.values()) == {f"{10 * 8 * 32:,}", f"{5 * 8 * 32:,}"}
    assert all(claim.paper == "" for claim in findings.claims)


def test_too_few_points_are_refused_and_a_missing_way_is_not_decidable(grid: list[PlannedTrial]) -> None:
    diverged = {f"zh_seed{seed}": "diverged: its held-out loss is not finite" for seed in SEEDS}
    findings = config().analyse(planted_results(grid, planted, diverged), SEEDS)
    assert [claim.verdict for claim in findings.claims[:4]] == ["not decidable"] * 4
    assert "zh_seed1 (diverged" in findings.claims[0].reason
    left_out = {trial.name: "diverged" for trial in grid if trial.trial.settings["way"] == "bilingual"}
    with pytest.raises(DataError, match=r"too few points.*bilingual_seed1 \(diverged\)"):
        config().analyse(planted_results(grid, planted, left_out), SEEDS)


def test_runs_of_two_tokenizers_or_without_a_languages_text_are_refused(grid: list[PlannedTrial]) -> None:
    results = planted_results(grid, planted)
    results.finished[-1].text["tokenizer"] = "another"
    with pytest.raises(DataError, match="differ in their tokenizer"):
        config().analyse(results, SEEDS)
    french = config(first="fr", bilingual={"fr": 1, "zh": 1})
    with pytest.raises(DataError, match=r"no held-out text of the language fr.*\(here: en, zh\)"):
        french.analyse(planted_results(grid, planted), SEEDS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"second": "en"}, "is transfer.first as well"),
        ({"first_share": 0.01}, r"transfer\.first_share: 0\.01 of transfer\.steps = 10 leaves a stage no step"),
        ({"first_share": 1.0}, r"leaves a stage no step"),
        ({"transfers": {}}, "name one at least"),
        ({"transfers": {"first": {"zh": 1}}}, "none `bilingual` or `first`"),
        ({"transfers": {"none": {"en": 1}}}, r"transfer none: .* gives no share to transfer\.second = zh"),
    ],
)
def test_grids_that_make_no_sense_are_refused(base: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes).trials(base, SEEDS, None)


def test_several_blocks_are_refused(base: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="one block without `tokens`"):
        config().trials({**base, "data": {**base["data"], "blocks": [{}, {}]}}, SEEDS, None)


def test_a_language_that_another_contradicts_is_forgotten(tmp_path: Path, base_path: Path) -> None:
    """What follows a token in one language never follows it in the other, and a network that has seen one token of a
    document cannot know which it is of; two do."""
    transfer = config(steps=120, transfers={"zh": {"zh": 1}})
    study = StudyConfig(StudySection(str(tmp_path), [str(base_path)], seeds=SEEDS, workers=2), transfer=transfer)
    run_study(study)
    findings = read_findings(tmp_path)
    assert not findings.left_out
    forgets = findings.claims[-1]
    assert forgets.verdict == "confirmed", forgets
    assert float(forgets.here.split(": ")[1].split()[0]) > 0.5
    both, _, first = findings.claims[:3]
    assert both.verdict == "confirmed", both
    assert first.verdict == "confirmed", first
    least = ENTROPY / math.log(2)
    values = [float(cell.split()[0]) for row in findings.tables[0].rows for cell in row[2:]]
    assert min(values) > 0.95 * least  # no way beats the entropy of the languages
