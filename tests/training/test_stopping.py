"""The signal that ends a run: what it asks for, and who else hears of it."""

import os
import signal
from types import FrameType

from mindllm_engine.training.stopping import StopSignal


def test_who_handled_a_signal_before_hears_of_it_too_and_has_it_back_after() -> None:
    heard = []

    def before(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    original = signal.signal(signal.SIGUSR1, before)
    try:
        with StopSignal() as stop:
            assert not stop.requested
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.requested
        assert heard == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGUSR1) is before
    finally:
        signal.signal(signal.SIGUSR1, original)


def test_a_signal_that_nobody_handled_only_asks() -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
