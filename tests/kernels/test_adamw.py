"""AdamW over flat slices, reference and kernel, against torch.optim.AdamW in fp64; and the split master, bit by bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mindllm_engine.kernels import launch
from mindllm_engine.kernels.adamw import BLOCK, CHUNK, adamw, join_master, split_master

CONSTANTS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
SCALE = 0.375


def random(elements: int, count: int, device: str) -> list[Tensor]:
    """Weights of bf16 precision in fp32, and `count` gradients of it."""
    generator = torch.Generator().manual_seed(elements)
    return [torch.randn(elements, generator=generator).bfloat16().float().to(device) for _ in range(1 + count)]


def ours(
    weights: Tensor,
    gradients: list[Tensor],
    decayed: int,
    dtype: torch.dtype = torch.bfloat16,
    split: bool = False,
    place: Callable[[Tensor], Tensor] = torch.clone,
    **constants: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Parameters, fp32 master weights, m and v after a step for each gradient; `place` puts a tensor where it lies."""
    param = place(weights.to(dtype))
    master = place(torch.zeros_like(weights, dtype=torch.int16) if split else weights)
    m, v = (place(torch.zeros_like(weights)) for _ in range(2))
    scale = torch.tensor(SCALE, device=weights.device)
    for step, grad in enumerate(gradients, 1):
        adamw(
            param,
            master,
            place(grad),
            m,
            v,
            **(CONSTANTS | constants),
            decayed=decayed,
            step=step,
            grad_scale=scale,
        )
    return param, join_master(param, master) if split else master, m, v


def torchs(
    weights: Tensor, gradients: list[Tensor], decayed: int, dtype: torch.dtype, **constants: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, m and v of torch.optim.AdamW in `dtype`."""
    constants = CONSTANTS | constants
    parts = [part.to(dtype, copy=True).requires_grad_() for part in (weights[:decayed], weights[decayed:])]
    groups = [{"params": parts[:1]}, {"params": parts[1:], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, **constants)
    for grad in gradients:
        scaled = grad.to(dtype) * SCALE
        parts[0].grad, parts[1].grad = scaled[:decayed], scaled[decayed:]
        optimizer.step()
    states = [optimizer.state[part] for part in parts]
    return (
        torch.cat(parts).detach(),
        torch.cat([state["exp_avg"] for state in states]),
        torch.cat([state["exp_avg_sq"] for state in states]),
    )


def assert_follows_torch(
    weights: Tensor, gradients: list[Tensor], decayed: int, split: bool = False, **constants: Any
) -> None:
    """Weights and moments are at most twice as far from fp64 as torch's own in fp32, and the parameter is rounded."""
    exact = torchs(weights, gradients, decayed, torch.float64, **constants)
    peers = torchs(weights, gradients, decayed, torch.float32, **constants)
    param, *own = ours(weights, gradients, decayed, split=split, **constants)
    for name, truth, peer, mine in zip(("weights", "m", "v"), exact, peers, own, strict=True):
        error, peer_error = ((value.double() - truth).abs().max().item() for value in (mine, peer))
        assert error <= 2 * peer_error + 1e-7 * truth.abs().max().item(), (
            f"{name}: off by {error}, torch by {peer_error}"
        )
    assert torch.equal(param, split_master(own[0])[0] if split else own[0].bfloat16())


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("elements", [1, 7, 1023, 2 * BLOCK, 65537])
def test_follows_torch(elements: int, split: bool, device: str) -> None:
    weights, *gradients = random(elements, 3, device)
    for decayed in {0, elements // 3, elements} if elements < 65537 else {CHUNK - 1}:
        assert_follows_torch(weights, gradients, decayed, split)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize(
    "constants",
    [{"weight_decay": 0.0}, {"betas": (0.0, 0.0)}, {"eps": 0.0}, {"betas": (0.0, 0.999), "eps": 0.0}, {"lr": 0.0}],
)
def test_constants_at_their_ends(constants: dict[str, Any], device: str) -> None:
    weights, *gradients = random(300, 4, device)
    assert_follows_torch(weights, gradients, 100, **constants)


@pytest.mark.usefixtures("implementation")
def test_gradients_in_bf16(device: str) -> None:
    weights, *gradients = random(1500, 3, device)
    halves = [grad.bfloat16() for grad in gradients]
    for narrow, wide in zip(ours(weights, halves, 700), ours(weights, gradients, 700), strict=True):
        assert torch.equal(narrow, wide)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_parameter_is_the_rounded_master(dtype: torch.dtype, device: str) -> None:
    weights, *gradients = random(1500, 2, device)
    param, master, _, _ = ours(weights, gradients, 700, dtype)
    assert torch.equal(param, master.to(dtype))


@pytest.mark.usefixtures("implementation")
def test_masters_kept_either_way_are_the_same(device: str) -> None:
    weights, *gradients = random(5000, 5, device)
    param, master, m, v = ours(weights, gradients, 1234)
    split_param, *split_rest = ours(weights, gradients, 1234, split=True)
    for one, other in zip((master, m, v), split_rest, strict=True):
        assert torch.equal(one, other)
    ties = master.view(torch.int32) & 0xFFFF == 0x8000
    assert torch.equal(param[~ties], split_param[~ties])


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("split", [False, True])
def test_slices_may_begin_anywhere(split: bool, device: str) -> None:
    weights, *gradients = random(1500, 2, device)

    def place(x: Tensor) -> Tensor:
        room = torch.full((len(x) + 9,), 3, dtype=x.dtype, device=x.device)
        room[3:-6] = x
        rooms.append(room)
        return room[3:-6]

    rooms: list[Tensor] = []
    expected = ours(weights, gradients, 701, split=split)
    for one, other in zip(ours(weights, gradients, 701, split=split, place=place), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert all((room[:3] == 3).all() and (room[-6:] == 3).all() for room in rooms), "nothing beside it is written"


@pytest.mark.usefixtures("implementation")
def test_cut_anywhere_the_parts_make_the_whole(device: str) -> None:
    weights, *gradients = random(4000, 2, device)
    whole = ours(weights, gradients, 1500)
    for cut in (1, 1024, 1501, 3999):
        first = ours(weights[:cut], [grad[:cut] for grad in gradients], min(cut, 1500))
        second = ours(weights[cut:], [grad[cut:] for grad in gradients], max(0, 1500 - cut))
        for parts in zip(whole, first, second, strict=True):
            torch.testing.assert_close(torch.cat(parts[1:]), parts[0], rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_spoils_its_element_alone(value: float, split: bool, device: str) -> None:
    weights, grad = random(1500, 1, device)
    grad[1100] = value
    for values in ours(weights, [grad, grad], 1200, split=split):
        assert (~values.isfinite()).nonzero().flatten().tolist() == [1100]
    param, master, _, _ = ours(weights, [torch.full_like(grad, value)] * 2, 0, split=split)
    assert param.isnan().all()
    assert master.isnan().all()


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, "split"])
@pytest.mark.parametrize("elements", [1, 2 * BLOCK, 2 * BLOCK + 7, CHUNK + 5])
def test_a_scale_of_nan_leaves_every_bit(elements: int, dtype: torch.dtype | str, device: str) -> None:
    weights, grad = random(elements, 1, device)
    weights[::5], grad[::7] = float("nan"), float("inf")  # which arithmetic would not keep as they are
    split = dtype == "split"
    param = weights.to(torch.bfloat16 if isinstance(dtype, str) else dtype)
    master = (grad.nan_to_num() * 100).to(torch.int16) if split else weights.clone()
    state = [param, master, torch.full_like(weights, -0.0), weights.clone()]
    before = [tensor.clone() for tensor in state]
    nan = torch.tensor(float("nan"), device=device)
    param, master, m, v = state
    adamw(param, master, grad, m, v, **CONSTANTS, decayed=elements // 2, step=3, grad_scale=nan)
    for tensor, old in zip(state, before, strict=True):
        assert torch.equal(tensor.view(torch.uint8), old.view(torch.uint8))
    adamw(param, master, grad, m, v, **CONSTANTS, decayed=elements // 2, step=3, grad_scale=-nan.nan_to_num(-1.0))
    assert not torch.equal(m.view(torch.uint8), before[2].view(torch.uint8)), "any other scale is no skip"


@pytest.mark.usefixtures("implementation")
def test_no_elements(device: str) -> None:
    assert all(values.numel() == 0 for values in ours(*random(0, 0, device), [torch.empty(0, device=device)], 0))


@pytest.mark.usefixtures("triton_kernels")
def test_steps_of_another_rate_run_the_same_machine_code() -> None:
    def arguments(step: int, lr: float) -> list[Any]:
        slices = [torch.empty(3_200_000_000, dtype=torch.bfloat16, device="meta")]
        slices += [torch.empty(3_200_000_000, device="meta") for _ in range(4)]
        with launch.recording() as launches:
            scale = torch.empty((), device="meta")
            adamw(*slices, **(CONSTANTS | {"lr": lr}), decayed=3_100_000_000, step=step, grad_scale=scale)
        (only,) = launches
        assert only.grid == (3_200_000_000 // BLOCK, 1, 1)
        return [*launch._specialisation(only.args), only.constants]

    assert arguments(1, 3e-4) == arguments(80_000, 0.0) == arguments(7, 1.0)


@pytest.mark.usefixtures("triton_kernels")
def test_compiles_into_one_graph(device: str) -> None:
    weights, grad = random(40, 1, device)

    def update(weights: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        return ours(weights, [grad], 17, split=True)

    compiled = torch.compile(update, fullgraph=True)(weights, grad)
    for one, other in zip(compiled, update(weights, grad), strict=True):
        assert torch.equal(one, other)


def every_upper_half_at_the_edges(device: str) -> Tensor:
    """fp32 numbers of all 65,536 upper halves, with lower halves around 0 and around the tie."""
    lower = torch.tensor([0, 1, 0x7FFE, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF], dtype=torch.int32, device=device)
    upper = torch.arange(-0x8000, 0x8000, dtype=torch.int32, device=device)
    return ((upper[:, None] << 16) + lower).flatten().view(torch.float32)


def test_split_masters_come_back_bit_for_bit(device: str) -> None:
    weights = every_upper_half_at_the_edges(device)
    param, extra_bits = split_master(weights)
    assert (param.dtype, extra_bits.dtype) == (torch.bfloat16, torch.int16)
    joined, is_nan = join_master(param, extra_bits), weights.isnan()
    assert torch.equal(joined.view(torch.int32)[~is_nan], weights.view(torch.int32)[~is_nan])
    assert torch.equal(joined.isnan(), is_nan)
    assert torch.equal(param.isnan(), is_nan)


def test_split_masters_round_to_nearest_and_ties_away_from_zero(device: str) -> None:
    weights = every_upper_half_at_the_edges(device)
    weights = weights[~weights.isnan()]
    param, torchs = split_master(weights)[0], weights.bfloat16()
    ties = (weights.view(torch.int32) & 0xFFFF) == 0x8000
    assert torch.equal(param.view(torch.int16)[~ties], torchs.view(torch.int16)[~ties])
    assert torch.equal(param.signbit(), weights.signbit())
    assert (param[ties].float().abs() > weights[ties].abs()).all()
    assert param.isinf()[weights.abs() >= 3.3961775e38].all(), "halfway from the largest bf16 to the next power of 2"


def test_the_kernel_splits_as_the_reference_does(triton_kernels: None, device: str) -> None:
    weights = every_upper_half_at_the_edges(device)
    param, extra_bits = split_master(weights)
    expected = param.clone(), extra_bits.clone()
    zeros, ones = torch.zeros_like(weights), torch.ones_like(weights)
    scale = torch.ones((), device=device)
    # A rate of 0 leaves the weights as they are; those that are not finite become NaN.
    adamw(
        param, extra_bits, zeros, zeros.clone(), ones, **(CONSTANTS | {"lr": 0.0}), decayed=0, step=1, grad_scale=scale
    )
    finite = weights.isfinite() & (weights != 0)  # the sign of 0 may change
    assert torch.equal(param.view(torch.int16)[finite], expected[0].view(torch.int16)[finite])
    assert torch.equal(extra_bits[finite], expected[1][finite])
    assert torch.equal(param.isnan(), weights.isnan() | weights.isinf())


@pytest.mark.usefixtures("implementation")
def test_a_nan_of_any_bits_stays_one_in_the_parameter(device: str) -> None:
    """0x7FFFFFFF, which a GPU gives, is a half away from the bits of -0, and 0x7F800001 from those of infinity."""
    bits = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, -0x7FFFFF], dtype=torch.int32, device=device)
    upper = (bits + 0x8000) >> 16
    param, extra_bits = upper.to(torch.int16).view(torch.bfloat16), (bits - (upper << 16)).to(torch.int16)
    assert not param.isnan().any()
    slices = [param, extra_bits, *(torch.ones(4, device=device) for _ in range(3))]
    adamw(*slices, **CONSTANTS, decayed=4, step=1, grad_scale=torch.ones((), device=device))
    assert param.isnan().all()
    assert join_master(param, extra_bits).isnan().all()


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"m": torch.zeros(5)}, "m must be a contiguous slice of 6 elements"),
        ({"grad": torch.zeros(12)[::2]}, "grad must be a contiguous slice of 6 elements"),
        ({"v": torch.zeros(6, dtype=torch.float64)}, "m and v must be fp32"),
        ({"grad": torch.zeros(6, dtype=torch.int32)}, "grad must be fp32 or bf16"),
        ({"master": torch.zeros(6, dtype=torch.int16), "param": torch.zeros(6)}, "int16 beside a bf16 param"),
        ({"master": torch.zeros(6, dtype=torch.bfloat16)}, "master must be fp32, or int16"),
        ({"decayed": 7}, "decayed must lie in 0 to 6, got 7"),
        ({"grad_scale": torch.ones(1)}, "grad_scale must be one fp32 number"),
    ],
)
def test_slices_that_do_not_fit_are_refused(replaced: dict[str, Any], message: str) -> None:
    slices = {"param": torch.zeros(6).bfloat16()} | {name: torch.zeros(6) for name in ("master", "grad", "m", "v")}
    with pytest.raises(ValueError, match=message):
        adamw(**(slices | CONSTANTS | {"decayed": 0, "step": 1, "grad_scale": torch.ones(())} | replaced))
