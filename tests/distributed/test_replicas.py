"""The hash of weights against Python's integers, what it sees, and ranks that drift apart in real processes."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mindllm_engine.distributed import replicas
from mindllm_engine.distributed.replicas import difference, hash_of
from tests.training.tiny_run import ROOT, environment

MASK = (1 << 64) - 1


def hash_in_python(tensor: Tensor, chunk: int) -> int:
    """The definition with unbounded integers."""
    raw, size = tensor.flatten().view(torch.uint8).numpy().tobytes(), tensor.element_size()
    elements = [int.from_bytes(raw[i : i + size], "little", signed=True) for i in range(0, len(raw), size)]
    total = 0
    for first in range(0, len(elements), chunk):
        digit = 0
        for position, element in enumerate(elements[first : first + chunk], start=1):
            number = position * 0x9E3779B97F4A7C15 & MASK
            signed = number - (1 << 64 if number >> 63 else 0)
            digit += element * ((number ^ signed >> 32 & MASK) * 0xD1342543DE82EF95 & MASK | 1)
        total = total * 0xD1342543DE82EF95 + digit
    return total & MASK


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(replicas, "CHUNK", 7)
    replicas.multipliers.cache_clear()
    yield 7
    replicas.multipliers.cache_clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("elements", [0, 1, 6, 7, 8, 40])
def test_is_what_its_definition_says(elements: int, dtype: torch.dtype, small_chunks: int) -> None:
    values = (torch.randn(elements, generator=torch.Generator().manual_seed(elements)) * 100).to(dtype)
    assert hash_of(values).item() & MASK == hash_in_python(values, small_chunks)
    assert hash_of(values.view(-1, 1).expand(-1, 2)) == hash_of(values.repeat_interleave(2)), "strides do not matter"


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([torch.bfloat16, torch.float32]), st.integers(1, 2**20 + 100), st.data())
def test_any_one_bit_changes_it(dtype: torch.dtype, elements: int, data: st.DataObject) -> None:
    values = torch.ones(elements, dtype=dtype)
    bits = values.view(torch.int16 if dtype == torch.bfloat16 else torch.int32)
    before = hash_of(values)
    position, bit = data.draw(st.integers(0, elements - 1)), data.draw(st.integers(0, 8 * dtype.itemsize - 2))
    bits[position] ^= 1 << bit
    assert hash_of(values) != before
    bits[position] ^= 1 << bit
    assert hash_of(values) == before


def test_order_and_nan_are_seen() -> None:
    values = torch.arange(3 * 2**20).float()
    before = hash_of(values)
    for one, other in ((0, 1), (5, 2**20 + 5), (2**20 - 1, 2**20)):
        exchanged = values.clone()
        exchanged[[one, other]] = values[[other, one]]
        assert hash_of(exchanged) != before
    assert hash_of(torch.full((4,), torch.nan)) == hash_of(torch.full((4,), torch.nan))
    assert hash_of(torch.zeros(2)) != hash_of(-torch.zeros(2)), "the bits of 0 and -0 differ"


@pytest.mark.parametrize(
    ("by_rank", "message"),
    [
        ([[1, 2], [1, 2], [1, 3]], "the weights of rank 2 differ from those of the other 2, first in b"),
        ([[1, 2], [9, 3], [1, 2]], "the weights of rank 1 differ from those of the other 2, first in a"),
        ([[1, 2], [1, 3]], "the weights of rank 1 differ from those of rank 0, first in b"),
        ([[5, 2], [1, 2], [1, 7], [1, 2]], "the weights of ranks 0, 2 differ from those of the other 2, first in a"),
        ([[n, 0] for n in range(11)], "ranks 1, 2, 3, 4, 5, 6, 7, 8 and 2 more differ from those of rank 0"),
    ],
)
def test_names_who_disagrees(by_rank: list[list[int]], message: str) -> None:
    assert message in difference(by_rank, ["a", "b"])


def test_ranks_that_drift_apart(tmp_path: Path) -> None:
    script = tmp_path / "drift.py"
    script.write_text(
        textwrap.dedent("""
        import torch
        from torch import nn
        import torch.distributed as dist
        from mindllm_engine.distributed.replicas import refuse_different_replicas
        from mindllm_engine.errors import MindLLMError

        dist.init_process_group("gloo")
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(30, 20), nn.LayerNorm(20)).bfloat16()
        for step, flipping_rank in enumerate((None, 0, 2)):
            bits = model[1].weight.data.view(torch.int16)
            if dist.get_rank() == flipping_rank:
                bits[7] ^= 1
            try:
                refuse_different_replicas(model, step)
            except MindLLMError as error:
                print(f"{error}\\n", end="", flush=True)  # at once, as three ranks print
            if dist.get_rank() == flipping_rank:
                bits[7] ^= 1
        dist.barrier()
        dist.destroy_process_group()
        """)
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    done = subprocess.run(
        [*launcher, str(script)], capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = sorted(line.partition("; look at")[0] for line in done.stdout.splitlines())
    expected = "step {}: the weights of rank {} differ from those of the other 2, first in 1.weight"
    assert lines == [expected.format(1, 0)] * 3 + [expected.format(2, 2)] * 3
