"""A short run of every fuzz target on the plain build, and proof that the long one finds what it should."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import mindllm_engine._native as native
import numpy as np
import pytest

from tests.fuzz.build import build_planted, sanitizer_runtime
from tests.fuzz.run import fuzz
from tests.fuzz.targets import TARGETS, load_target
from tests.fuzz.token_file_inputs import documents_of

INPUTS = {"manifest": 3000, "samples": 4000}
"""Of the short run, where they are not 10,000: what takes a few seconds."""


def inputs_near(seeds: list[bytes], count: int) -> Iterator[bytes]:
    """The seeds, then random bytes and seeds with up to three bytes changed; always the same."""
    yield from seeds
    generator = random.Random(20_000)
    for _ in range(count):
        data = bytearray(generator.choice([generator.choice(seeds), generator.randbytes(generator.randrange(300))]))
        for _ in range(min(generator.randrange(4), len(data))):
            data[generator.randrange(len(data))] = generator.randrange(256)
        yield bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_target_finds_nothing(name: str, tmp_path: Path) -> None:
    target = load_target(name)
    run = target.make(tmp_path)
    done = 0
    for data in inputs_near(target.seeds(), INPUTS.get(name, 10_000)):
        try:
            run(data)
        except Exception as error:
            raise AssertionError(f"target {name}, input {data!r}") from error
        done += 1
    assert done > 3000


def test_oracle_agrees_with_files_that_are_right(tmp_path: Path) -> None:
    lengths = np.array([3, 0, 70_000, 1, 0])
    native.write_index(tmp_path / "a.idx", "uint16", lengths)
    content = (tmp_path / "a.idx").read_bytes()
    assert documents_of(content, 2 * 70_004) == [(0, 3), (3, 0), (3, 70_000), (70_003, 1), (70_004, 0)]
    assert documents_of(content, 2 * 70_004 - 1) is None
    assert documents_of(content[:-1], 2 * 70_004) is None


@pytest.mark.skipif(sanitizer_runtime() is None, reason="atheris has no wheel for this platform")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_planted_read_is_found() -> None:
    """One byte after the end of a map, in its last page, behind a number of four bytes that chance would not hit."""
    build_planted()
    outcome = fuzz("planted", inputs=100_000, seed=1)
    assert "AddressSanitizer: use-after-poison" in outcome.finding
    kept = Path(outcome.finding.split()[-1])
    assert kept.read_bytes().startswith(b"\xed\x5e\0\0")
    assert "use-after-poison" in fuzz("planted", inputs=1, replay=kept).finding
