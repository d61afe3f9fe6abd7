"""Where the real text lies for tests: $MINDLLM_DATA, or shared/data beside the repository. Always an absolute path, and
so set for the programs that tests start elsewhere: `make` gives a path relative to the repository."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = (ROOT / os.environ.get("MINDLLM_DATA", "../shared/data")).resolve()
os.environ["MINDLLM_DATA"] = str(REAL_DATA)
