"""What attention runs on: the decision from facts, for machines that this one is not, and what it says about it."""

import inspect
import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.varlen import varlen_attn

from mindllm_engine.errors import ConfigError
from mindllm_engine.kernels import attention as attention_file
from mindllm_engine.kernels import attention_backends
from mindllm_engine.kernels.attention import attention, select_attention
from mindllm_engine.kernels.attention_backends import (
    BACKENDS,
    NO_GPU,
    Backend,
    Case,
    Machine,
    Pack,
    choose,
    ranking,
    run_sdpa,
    run_varlen,
)

# A training step of either network: bf16, head_dim 128, packed documents.
TRAINING = Case(
    on_gpu=True,
    dtype=torch.bfloat16,
    head_dim=128,
    has_window=False,
    has_cache=False,
    equal_lengths=False,
    deterministic=False,
    torch_deterministic=False,
)
NO_PACKAGES: Mapping[Backend, str] = {
    "flash_attention_3": "flash_attn_interface is not installed",
    "flash_attn": "flash_attn is not installed",
}
H100 = Machine((9, 0), {})
A100 = Machine((8, 0), {})


@pytest.fixture(autouse=True)
def automatic() -> Iterator[None]:
    yield
    select_attention()


def every_case() -> Iterator[Case]:
    choices = {
        "dtype": (torch.bfloat16, torch.float16, torch.float32, torch.float64),
        "head_dim": (6, 64, 128, 256, 264),
    }
    values = [choices.get(field.name, (False, True)) for field in fields(Case)]
    for chosen in itertools.product(*values):
        yield Case(*chosen)


def every_machine() -> Iterator[Machine]:
    for capability in (None, (7, 5), (8, 0), (9, 0), (10, 0)):
        for count in range(len(BACKENDS)):
            for missing in itertools.combinations(BACKENDS[:-1], count):
                yield Machine(capability, dict.fromkeys(missing, "not there"))


def serves(backend: Backend, case: Case, machine: Machine) -> bool:
    """What the docstring of `select_attention` promises, said as a whole."""
    if backend == "reference":
        return True
    flash = case.on_gpu and case.dtype.itemsize == 2 and case.head_dim in (64, 128, 256)
    built = machine.capability is not None and machine.capability >= (8, 0) and backend not in machine.missing
    steady = {
        "flash_attention_3": not case.deterministic,
        "flash_attn": True,
        "varlen": case.torch_deterministic or not case.deterministic,
        "sdpa": case.torch_deterministic or not case.deterministic,
    }
    fits = backend != "sdpa" or (case.equal_lengths and not case.has_window and not case.has_cache)
    hopper = backend != "flash_attention_3" or machine.capability == (9, 0)
    return flash and built and steady[backend] and fits and hopper


def test_every_case_on_every_machine_takes_the_first_backend_that_serves_it() -> None:
    cases, machines = list(every_case()), list(every_machine())
    assert len(cases) == 1280
    assert len(machines) == 80
    for machine in machines:
        for case in cases:
            ranked = ranking(case, machine)
            assert [backend for backend, _ in ranked] == list(BACKENDS)
            served = [backend for backend, obstacle in ranked if obstacle is None]
            assert served == [backend for backend in BACKENDS if serves(backend, case, machine)], (case, machine)
            assert choose(case, machine, "auto")[0] == served[0]


@pytest.mark.parametrize(
    ("machine", "changes", "backend", "reason"),
    [
        (H100, {}, "flash_attention_3", "nothing faster exists"),
        (H100, {"has_window": True}, "flash_attention_3", "nothing faster exists"),
        (H100, {"deterministic": True}, "flash_attn", "not known to have a deterministic backward"),
        (A100, {}, "flash_attn", "needs a GPU of compute capability 9.0 and this one has 8.0"),
        (Machine((9, 0), NO_PACKAGES), {}, "varlen", "flash_attn_interface is not installed; flash_attn is not inst"),
        (
            Machine((9, 0), {**NO_PACKAGES, "varlen": "torch 2.9 has no torch.nn.attention.varlen"}),
            {"equal_lengths": True},
            "sdpa",
            "torch 2.9 has no torch.nn.attention.varlen",
        ),
        (
            Machine((9, 0), NO_PACKAGES),
            {"deterministic": True},
            "reference",
            "varlen is deterministic only after torch.use_deterministic_algorithms",
        ),
        (Machine((9, 0), NO_PACKAGES), {"deterministic": True, "torch_deterministic": True}, "varlen", "not installed"),
        (Machine((7, 5), {}), {}, "reference", "needs a GPU of compute capability 8.0 and this one has 7.5"),
        (H100, {"dtype": torch.float32}, "reference", "takes bf16 and fp16 and not float32"),
        (H100, {"head_dim": 100}, "reference", "multiple of 8 up to 256 and not 100"),
        (NO_GPU, {"on_gpu": False}, "reference", "the tensors are on the CPU"),
    ],
)
def test_choices_and_their_reasons(machine: Machine, changes: dict[str, object], backend: str, reason: str) -> None:
    chosen, why = choose(replace(TRAINING, **changes), machine, "auto")
    assert chosen == backend
    assert reason in why
    assert "\n" not in why
    assert why.count("the tensors are on the CPU") <= 1


@pytest.mark.parametrize(
    ("backend", "changes", "message"),
    [
        ("sdpa", {}, "sdpa takes sequences of one length"),
        ("sdpa", {"equal_lengths": True, "has_window": True}, "sdpa has no window"),
        ("sdpa", {"equal_lengths": True, "has_cache": True}, "a cache needs it at the last"),
        ("flash_attn", {"dtype": torch.float32}, "float32"),
        ("flash_attention_3", {"deterministic": True}, "deterministic"),
        ("varlen", {"deterministic": True}, "use_deterministic_algorithms"),
        ("varlen", {"head_dim": 512}, "512"),
        ("varlen", {"on_gpu": False}, "on the CPU"),
    ],
)
def test_a_pinned_backend_is_never_replaced(backend: Backend, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"pinned to {backend}, but .*{message}"):
        choose(replace(TRAINING, **changes), H100, backend)


def test_a_pinned_backend_runs_where_it_can() -> None:
    for backend in BACKENDS:
        case = replace(TRAINING, equal_lengths=True)
        assert choose(case, H100, backend) == (backend, "select_attention pinned it")


@pytest.mark.parametrize("backend", BACKENDS[:-1])
@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU answers")
def test_a_machine_without_a_gpu_refuses_what_needs_one(backend: Backend) -> None:
    with pytest.raises(ConfigError, match=f"cannot be pinned to {backend}: torch sees no NVIDIA GPU; choose auto"):
        select_attention(backend)


@pytest.mark.parametrize(
    ("machine", "backend", "deterministic", "message"),
    [
        (A100, "flash_attention_3", False, "compute capability 9.0 and this one has 8.0"),
        (Machine((9, 0), NO_PACKAGES), "flash_attn", False, "flash_attn is not installed"),
        (H100, "flash_attention_3", True, "not known to have a deterministic backward"),
    ],
)
def test_what_a_machine_cannot_run_is_refused_when_selected(
    monkeypatch: pytest.MonkeyPatch, machine: Machine, backend: Backend, deterministic: bool, message: str
) -> None:
    monkeypatch.setattr(attention_file, "read_machine", lambda: machine)
    with pytest.raises(ConfigError, match=message):
        select_attention(backend, deterministic)


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(ConfigError, match="no backend 'flash'; choose auto or one of flash_attention_3"):
        select_attention("flash")  # type: ignore[arg-type]


def run_on_cpu(lengths: list[int], cu_seqlens: Tensor | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, 2, 8, generator=generator)
    if cu_seqlens is None:
        cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return attention(*qkv.unbind(1), cu_seqlens)


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    attention_file._log_choice.cache_clear()
    select_attention()
    with caplog.at_level(logging.INFO, attention_file.__name__):
        for lengths in ([3, 4], [7], [2, 2]):
            run_on_cpu(lengths)
        select_attention("reference")
        run_on_cpu([3, 4])
        run_on_cpu([3, 4])
    assert [record.getMessage() for record in caplog.records] == [
        "attention runs on reference: the tensors are on the CPU",
        "attention runs on reference: select_attention pinned it",
    ]


def test_a_pinned_and_a_deterministic_reference_give_the_same_numbers() -> None:
    expected = run_on_cpu([3, 4])
    select_attention("reference", deterministic=True)
    assert torch.equal(run_on_cpu([3, 4]), expected)


def test_offsets_made_in_inference_mode() -> None:
    """Such tensors count no versions, and generation makes its offsets there."""
    with torch.inference_mode():
        inferred = run_on_cpu([3, 4])
    assert torch.equal(inferred, run_on_cpu([3, 4]))


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_sdpa_on_sequences_of_one_length(kv_heads: int) -> None:
    """torch's FlashAttention for the CPU stands in for that of the GPU: the mask, scale, groups and shapes are ours."""
    torch.manual_seed(0)
    q = torch.randn(10, 4, 8, requires_grad=True)
    kv = torch.randn(10, 2, kv_heads, 8, requires_grad=True)
    cu_seqlens = torch.tensor([0, 5, 10], dtype=torch.int32)
    pack = Pack(cu_seqlens, cu_seqlens, 5, 5, (-1, 0), 0.3, False)
    ours = run_sdpa(q, *kv.unbind(1), pack)
    expected = attention(q, *kv.unbind(1), cu_seqlens, scale=0.3)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours.sum(), (q, kv)), torch.autograd.grad(expected.sum(), (q, kv)))


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("groups_heads", [True, False])
def test_the_installed_varlen_attn_takes_our_arguments(
    monkeypatch: pytest.MonkeyPatch, kv_heads: int, groups_heads: bool
) -> None:
    """Names and shapes only: fake tensors pass through torch's operator and its backward without a kernel."""
    if groups_heads and "enable_gqa" not in inspect.signature(varlen_attn).parameters:
        pytest.skip("this torch's varlen_attn has no enable_gqa")
    monkeypatch.setattr(attention_backends, "_varlen_groups_heads", lambda: groups_heads)
    with FakeTensorMode():
        q = torch.empty(10, 4, 8, dtype=torch.bfloat16, requires_grad=True)
        kv = torch.empty(10, 2, kv_heads, 8, dtype=torch.bfloat16, requires_grad=True)
        cu_seqlens = torch.empty(3, dtype=torch.int32)
        out = run_varlen(q, *kv.unbind(1), Pack(cu_seqlens, cu_seqlens, 6, 6, (255, 0), 1.0, False))
        assert (out.shape, out.dtype) == (q.shape, q.dtype)
        gradients = torch.autograd.grad(out.sum(), (q, kv))
        assert [gradient.shape for gradient in gradients] == [q.shape, kv.shape]
