"""Progress where there is no terminal: plain lines on stderr, none for a short run."""

import pytest

from mindllm_engine.data import byte_progress
from mindllm_engine.data.byte_progress import ByteProgress


def test_plain_lines_off_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with ByteProgress("web", 4_000_000) as quick:
        quick.show(4_000_000)
    assert capsys.readouterr().err == ""

    monkeypatch.setattr(byte_progress, "_SECONDS_A_LINE", 0.0)
    with ByteProgress("web", 4_000_000) as shown:
        shown.show(1_000_000)
    line = capsys.readouterr().err
    assert line.startswith("web: 1.0 of 4.0 MB read (25%), ")
    assert line.count("\n") == 1
