"""Memory counted by the kernel against arrays of known size."""

import numpy as np
import pytest

from benchmarks.process_memory import anonymous_bytes, forget_peak, in_fresh_process, peak_bytes, resident_bytes


def grow(size: int) -> tuple[int, int, int]:
    before, resident = anonymous_bytes(), resident_bytes()
    forget_peak()
    held, dropped = np.ones(size, np.uint8), np.ones(2 * size, np.uint8)
    del dropped
    return anonymous_bytes() - before, peak_bytes() - resident, len(held)


def test_memory_is_counted_in_a_process_of_its_own() -> None:
    size = 64 << 20
    grown, peak, _ = in_fresh_process(grow, size)
    assert size <= grown < size + (4 << 20)
    assert abs(peak - 3 * size) < 8 << 20
    with pytest.raises(MemoryError):
        in_fresh_process(grow, size, limit_bytes=size)
