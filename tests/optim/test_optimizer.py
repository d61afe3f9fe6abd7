"""AdamW over slices against torch.optim.AdamW, main gradients, and the schedules at their corners."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mindllm_engine.errors import ConfigError
from mindllm_engine.kernels.adamw import CHUNK
from mindllm_engine.kernels.backend import select_kernels
from mindllm_engine.kernels.rows import main_grad
from mindllm_engine.optim.optimizer import AdamW, OptimConfig
from mindllm_engine.optim.schedules import ScheduleConfig, learning_rate
from tests.distributed.one_rank import flat_parameters, master_weights, optimizer_of, take_step

# The kernels run on the GPU where there is one, and are interpreted elsewhere.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(50, 24), nn.Linear(24, 40), nn.GELU(), nn.LayerNorm(40), nn.Linear(40, 1, bias=False)
    ).to(DEVICE)


def loss_of(model: nn.Module, seed: int) -> torch.Tensor:
    tokens = torch.randint(0, 50, (32,), generator=torch.Generator().manual_seed(seed))
    return model(tokens.to(DEVICE)).float().square().mean()


@pytest.fixture(params=["reference", "triton"])
def implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    select_kernels(request.param)
    yield
    select_kernels("auto")


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("clip", [0.0, 0.01])
@pytest.mark.parametrize("bucket_elements", [1 << 25, 1000, 1])
def test_adamw_follows_torch(clip: float, bucket_elements: int) -> None:
    model, reference = small_model(), small_model()
    config = OptimConfig(lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, clip_grad_norm=clip)
    optimizer = optimizer_of(flat_parameters(model, bucket_elements), config)
    decayed = [p for p in reference.parameters() if p.dim() >= 2]
    plain = [p for p in reference.parameters() if p.dim() < 2]
    oracle = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    for step in range(20):
        loss_of(model, step).backward()
        loss_of(reference, step).backward()
        norm = take_step(optimizer, 1e-2, torch.tensor(1.0, device=DEVICE))
        expected = torch.nn.utils.clip_grad_norm_(reference.parameters(), clip or math.inf)
        assert norm.item() == pytest.approx(expected.item(), rel=1e-5)
        oracle.step()
        oracle.zero_grad()
        for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)


def test_adamw_spans_chunks() -> None:
    model = nn.Linear(CHUNK // 8 + 3, 19, bias=False)
    reference = nn.Linear(CHUNK // 8 + 3, 19, bias=False)
    reference.load_state_dict(model.state_dict())
    optimizer = optimizer_of(flat_parameters(model), OptimConfig(lr=1e-3, clip_grad_norm=0))
    oracle = torch.optim.AdamW(reference.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    x = torch.randn(4, model.in_features)
    for _ in range(3):
        model(x).square().sum().backward()
        reference(x).square().sum().backward()
        take_step(optimizer, 1e-3, torch.tensor(1.0))
        oracle.step()
        oracle.zero_grad()
    torch.testing.assert_close(model.weight, reference.weight, rtol=1e-5, atol=1e-6)


def test_bf16_parameters_are_rounded_masters_and_gradients_accumulate_in_fp32() -> None:
    model = small_model().bfloat16()
    flat = flat_parameters(model)
    optimizer = optimizer_of(flat, OptimConfig(lr=1e-3))
    for step in range(6):
        loss_of(model, step).backward()
        assert all(parameter.grad is None for parameter in model.parameters())
        if step % 3 == 2:
            take_step(optimizer, 1e-3, torch.tensor(1 / 3, device=DEVICE))
            assert not flat.grads.any()
    master = master_weights(optimizer)
    assert torch.equal(flat.params, master.bfloat16())
    assert not torch.equal(master, master.bfloat16().float())


def test_parameters_stay_views_of_the_flat_buffer() -> None:
    model = small_model()
    flat = flat_parameters(model)
    flat.params.fill_(2.0)
    assert all((parameter == 2).all() for parameter in model.parameters())


class Scale(torch.autograd.Function):
    """`x * weight`; the weight's gradient goes to its main gradient, where it has one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.into = main_grad(weight)
        return x * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        if ctx.into is None:
            return grad * weight, grad * x
        ctx.into += grad * x
        return grad * weight, None


class Tied(nn.Module):
    """Weights used by an operator that adds to their main gradient, by torch, or by both, each more than once."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        for name in ("direct", "plain", "tied"):
            setattr(self, name, nn.Parameter(torch.randn(3, 4, generator=generator)))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.tied + self.plain
        x = Scale.apply(Scale.apply(x, self.tied), self.direct)
        return Scale.apply(torch.tanh(x) * self.tied, self.direct).square().mean()


def test_both_ways_to_the_main_gradient_add_up() -> None:
    model, reference = Tied(), Tied()
    model(torch.ones(3, 4)).backward()  # what a parameter's gradient held before does not count
    flat = flat_parameters(model)
    batches = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(6))
    for _ in range(2):  # steps; the second is not to see what the first has left
        for x in batches:
            model(x).backward()
            reference(x).backward()
            assert all(parameter.grad is None for parameter in model.parameters())
        for name, parameter in reference.named_parameters():
            torch.testing.assert_close(flat.views(flat.grads)[name], parameter.grad, rtol=1e-6, atol=1e-7)
        flat.begin_step()
        reference.zero_grad()
        batches = batches.flip(0) * 2


def test_gradients_that_a_step_does_not_touch_are_zero() -> None:
    model = nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)])
    flat = flat_parameters(model)
    x = torch.ones(2, 4)
    model[2](model[1](model[0](x))).sum().backward()
    flat.begin_step()
    model[0](x).sum().backward()
    flat.clear_old_gradients()
    touched = {name: bool(view.any()) for name, view in flat.views(flat.grads).items()}
    assert touched == {name: name.startswith("0.") for name in touched}


def test_main_gradients_are_views_of_the_flat_one() -> None:
    model = small_model()
    flat = flat_parameters(model)
    flat.grads.copy_(torch.arange(flat.grads.numel()))
    for name, parameter in model.named_parameters():
        assert torch.equal(main_grad(parameter), flat.views(flat.grads)[name])


def bf16_optimizer(master: str) -> AdamW:
    return optimizer_of(flat_parameters(small_model().bfloat16()), OptimConfig(lr=1e-2, master=master))


def take_random_steps(optimizer: AdamW, steps: range) -> None:
    """With gradients that do not depend on the parameters."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for part in optimizer.slices:
            part.grads.copy_(torch.randn(part.grads.shape, generator=generator))
        take_step(optimizer, 1e-2, torch.tensor(0.5, device=DEVICE))


@pytest.mark.usefixtures("implementation")
def test_split_masters_are_the_fp32_masters() -> None:
    plain, split = bf16_optimizer("fp32"), bf16_optimizer("bf16_and_bits")
    assert all(master.dtype == torch.int16 for master in split.master)
    for step in range(10):
        take_random_steps(plain, range(step, step + 1))
        take_random_steps(split, range(step, step + 1))
        assert torch.equal(master_weights(plain), master_weights(split))
        for master, one, other in zip(plain.master, plain.slices, split.slices, strict=True):
            ties = master.view(torch.int32) & 0xFFFF == 0x8000
            assert torch.equal(one.params[~ties], other.params[~ties])


@pytest.mark.parametrize("before", ["fp32", "bf16_and_bits"])
@pytest.mark.parametrize("after", ["fp32", "bf16_and_bits"])
def test_state_passes_from_one_form_to_the_other(before: str, after: str) -> None:
    first, second = bf16_optimizer(before), bf16_optimizer(after)
    take_random_steps(first, range(5))
    for index in range(len(first.slices)):
        middle = first.m[index].numel() // 3  # in two parts, as checkpoints may bring it
        for part in (slice(0, middle), slice(middle, None)):
            state = (first.master_weights(index)[part], first.m[index][part], first.v[index][part])
            second.write(index, part.start, *state)
    assert torch.equal(master_weights(first), master_weights(second))
    for index, (one, other) in enumerate(zip(first.slices, second.slices, strict=True)):
        torch.testing.assert_close(other.params, one.params, rtol=2**-7, atol=0)  # a tie may fall otherwise
        assert torch.equal(first.m[index], second.m[index])
        assert torch.equal(first.v[index], second.v[index])


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        (ScheduleConfig("constant"), 77, 1.0),
        (ScheduleConfig("constant", warmup_steps=10), 0, 0.1),
        (ScheduleConfig("constant", warmup_steps=10), 9, 1.0),
        (ScheduleConfig("linear", warmup_steps=20, min_lr=0.1), 19, 1.0),
        (ScheduleConfig("linear", warmup_steps=20, min_lr=0.1), 59, 0.55),
        (ScheduleConfig("linear", warmup_steps=20, min_lr=0.1), 99, 0.1),
        (ScheduleConfig("cosine", min_lr=0.2), 49, 0.6),
        (ScheduleConfig("cosine", min_lr=0.2), 99, 0.2),
        (ScheduleConfig("wsd", warmup_steps=5, min_lr=0.1), 89, 1.0),
        (ScheduleConfig("wsd", warmup_steps=5, min_lr=0.1), 94, 0.55),
        (ScheduleConfig("wsd", warmup_steps=5, min_lr=0.1), 99, 0.1),
        (ScheduleConfig("wsd", decay_fraction=1.0), 0, 0.99),
    ],
)
def test_schedules(schedule: ScheduleConfig, step: int, expected: float) -> None:
    assert learning_rate(schedule, 1.0, step, total_steps=100) == pytest.approx(expected)


def test_exponential_decay_is_that_of_minicpm() -> None:
    """f(s - T) = 0.5^((s - S) / T) from the step S where the decay begins, with the half-life that ends at min_lr."""
    schedule = ScheduleConfig("wsd", warmup_steps=10, min_lr=0.01 / 32, decay_fraction=0.25, decay_shape="exponential")
    rates = [learning_rate(schedule, 0.01, step, 400) for step in range(400)]
    assert rates[9:300] == [0.01] * 291
    for step in range(300, 400):
        assert rates[step] == pytest.approx(0.01 * 0.5 ** ((step - 299) / 20), rel=1e-12)
    assert rates[399] == pytest.approx(0.01 / 32)
    linear = ScheduleConfig("wsd", warmup_steps=10, min_lr=0.01 / 32, decay_fraction=0.25)
    assert [learning_rate(linear, 0.01, step, 400) for step in range(300)] == rates[:300]
    assert all(learning_rate(linear, 0.01, step, 400) > rates[step] for step in range(300, 399))


def test_the_papers_schedule() -> None:
    """MindLLM-3B: 16k steps to 3e-4, then linear to 3e-5 at 80k."""
    schedule = ScheduleConfig("linear", warmup_steps=16_000, min_lr=3e-5)
    assert learning_rate(schedule, 3e-4, 15_999, 80_000) == pytest.approx(3e-4)
    assert learning_rate(schedule, 3e-4, 47_999, 80_000) == pytest.approx(1.65e-4)
    assert learning_rate(schedule, 3e-4, 79_999, 80_000) == pytest.approx(3e-5)


@pytest.mark.parametrize(
    "config",
    [
        OptimConfig(lr=0.0),
        OptimConfig(betas=(0.9, 1.0)),
        OptimConfig(weight_decay=-0.1),
        OptimConfig(schedule=ScheduleConfig(min_lr=1.0)),
        OptimConfig(schedule=ScheduleConfig(warmup_steps=-1)),
        OptimConfig(schedule=ScheduleConfig(decay_fraction=0.0)),
        OptimConfig(schedule=ScheduleConfig("wsd", decay_shape="exponential")),
        OptimConfig(schedule=ScheduleConfig("cosine", min_lr=1e-5, decay_shape="exponential")),
    ],
)
def test_impossible_values_are_refused(config: OptimConfig) -> None:
    with pytest.raises(ConfigError, match=r"^optim\."):
        config.validate()
