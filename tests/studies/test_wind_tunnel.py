"""The wind tunnel from its config to its page, with networks of a few thousand parameters on a few hundred words."""

from pathlib import Path

import pytest
import yaml

from mindllm_engine.command_line import parse_arguments, read_yaml
from mindllm_engine.studies.report import read_findings
from mindllm_engine.studies.study import StudyConfig, run_study
from tests.studies.toy_study import write_base


def write_wind_tunnel(folder: Path) -> Path:
    """A wind tunnel of seventeen trials of a few steps."""
    base = write_base(folder, steps=4, keep_checkpoints=1)
    network = {
        "vocab_size": 300, "hidden_size": 16, "ffn_size": 40, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2,
        "max_seq_len": 32, "scale_emb": 12.0, "scale_depth": 1.4, "init_std": 0.1, "width_base": 16,
    }  # fmt: skip
    runs = read_yaml(base)
    runs["model"] = {"minicpm": network}
    runs["optim"] = {"lr": 0.01, "schedule": {"kind": "cosine", "warmup_steps": 1, "min_lr": 0.001}}
    base.write_text(yaml.safe_dump(runs, sort_keys=False, allow_unicode=True))
    study = {
        "study": {"dir": str(folder / "study"), "base": [str(base)], "seeds": [1], "workers": 2},
        "wind_tunnel": {
            "coordinates": {"widths": [16, 32], "rate": 0.01, "steps": 3, "every": 2},
            "learning_rates": {"widths": [16, 32], "rates": [0.005, 0.01, 0.02], "extensions": 0},
            "search": {
                "ranges": {"scale_emb": [1, 25], "scale_depth": [0.5, 8], "init_std": [0.02, 0.2], "lr": [0.001, 0.08]},
                "batches": 2,
                "batch_size": 1,
            },
        },
    }
    path = folder / "wind_tunnel.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


@pytest.mark.slow
def test_from_config_to_page_and_nothing_twice(tmp_path: Path) -> None:
    config = parse_arguments(StudyConfig, "", ["--config", str(write_wind_tunnel(tmp_path))])
    page = run_study(config)
    assert page is not None
    findings = read_findings(page.parent)
    assert len(findings.claims) == 4 + 5 + 5
    assert [picture.name for picture in findings.pictures] == ["coordinates", "learning_rates", "search"]
    assert not findings.left_out
    # The base width's three rates once for both parametrisations, the search's best once more by the study's seed.
    names = [path.name for path in (tmp_path / "study" / "trials").iterdir()]
    assert sum(name.startswith("coordinates_") for name in names) == 4
    assert sum(name.startswith("learning_rates_minicpm_width16_") for name in names) == 3
    assert not any(name.startswith("learning_rates_standard_width16_") for name in names)
    assert sum(name.startswith("search_found_") for name in names) == 1
    slopes = findings.numbers["coordinates"]["minicpm"]
    assert {entry["step"] for entry in slopes} == {0, 2, 3}
    ended = {path: path.stat().st_mtime_ns for path in (tmp_path / "study").rglob("outcome.json")}
    assert run_study(config) == page
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "study").rglob("outcome.json")} == ended
