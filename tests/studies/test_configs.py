"""The studies that ship: each config is read, and its trials are laid out, at toy scale and at the papers'."""

from pathlib import Path

import pytest

from mindllm_engine.command_line import merge_mappings, parse_arguments, read_yaml
from mindllm_engine.studies.study import StudyConfig
from mindllm_engine.studies.trials import plan_trials
from tests.training.tiny_run import ROOT

STUDIES = [path for path in sorted((ROOT / "configs" / "studies").glob("*.yaml")) if "study" in read_yaml(path)]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_that_ships_is_laid_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = parse_arguments(StudyConfig, "", ["--config", str(path)])
    config.study.validate()
    base: dict[str, object] = {}
    for file in config.study.base:
        base = merge_mappings(base, read_yaml(file))
    seeds = config.study.seeds[:1]  # of which the trials are alike
    planned = plan_trials(config.experiment.trials(base, seeds, None), base, Path("trials"))
    assert planned
    assert all(trial.flops > 0 and 0 <= trial.first_step < trial.last_step for trial in planned)
