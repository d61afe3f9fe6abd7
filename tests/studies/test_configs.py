"""Every study in configs/studies parses, and its trials can be planned."""

from pathlib import Path
from typing import Any

import pytest

from mindllm_engine.command_line import merge_mappings, parse_arguments, read_yaml
from mindllm_engine.studies.study import StudyConfig
from mindllm_engine.studies.trials import plan_trials

ROOT = Path(__file__).resolve().parents[2]
# The others are configs of runs, which studies change.
STUDIES = [path for path in sorted((ROOT / "configs" / "studies").glob("*.yaml")) if "study" in read_yaml(path)]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_trials_can_be_planned(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = parse_arguments(StudyConfig, "", ["--config", str(path)])
    config.study.validate()
    base: dict[str, Any] = {}
    for name in config.study.base:
        base = merge_mappings(base, read_yaml(name))
    trials = config.experiment.trials(base, config.study.seeds, None)
    planned = plan_trials(trials, base, Path(config.study.dir))
    assert len(planned) == len(trials) > 0
    assert all(trial.parameters > 0 and trial.last_step > 0 for trial in planned)
