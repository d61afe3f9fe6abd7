"""Each benchmark starts by the command that its first lines give."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    path for path in sorted((ROOT / "benchmarks").glob("*.py")) if 'if __name__ == "__main__"' in path.read_text()
]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_help_is_printed(path: Path) -> None:
    if "argparse" not in path.read_text():
        pytest.skip("takes no options: would run whole")
    found = subprocess.run(
        [sys.executable, str(path), "--help"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    if re.search(r"No module named '(?!benchmarks|mindllm_engine)", found.stderr):
        pytest.skip(found.stderr.strip().splitlines()[-1])
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("usage: ")
