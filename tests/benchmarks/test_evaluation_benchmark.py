"""benchmarks/evaluation.py runs, and its rows have the shape of all benchmarks'."""

import json
import os
import subprocess
import sys

import pytest

from tests.evaluation.harness_models import REAL_TEXT, needs_real_text
from tests.training.tiny_run import ROOT


@pytest.mark.slow
@needs_real_text
def test_toy_run_writes_rows_with_the_same_answers(tmp_path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "evaluation.py"), "--toy", "--turns", "1"]
    environment = {**os.environ, "MINDLLM_DATA": str(REAL_TEXT.parent), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "rows.json")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "rows.json").read_text())
    assert set(content) == {"machine", "versions", "rows"}
    assert len(content["rows"]) == 8
    for row in content["rows"]:
        assert set(row) == {"name", "unit", "ours", "peer", "peer_name", "ratio", "bar", "holds"}
        if "same answer" in row["name"] or "largest difference" in row["name"]:
            assert row["ratio"] >= 1.0
