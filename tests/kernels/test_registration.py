"""Every registered operator under torch's own checks, and the public functions under torch.compile, autocast and on
meta tensors. Each operator's cases stand in one table, so that an operator without one is found."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mindllm_engine.kernels import adamw, square_norm  # noqa: F401  # registers their operators
from mindllm_engine.kernels.bias_gelu import bias_gelu
from mindllm_engine.kernels.cross_entropy import cross_entropy
from mindllm_engine.kernels.embedding_norm import embedding_norm
from mindllm_engine.kernels.geglu import geglu, geglu_split
from mindllm_engine.kernels.layer_norm import layer_norm, residual_layer_norm
from mindllm_engine.kernels.linear_cross_entropy import linear_cross_entropy
from mindllm_engine.kernels.rms_norm import deepnorm_residual_and_sum, rms_norm
from mindllm_engine.kernels.rotary import rotary, rotary_table
from mindllm_engine.kernels.swiglu import swiglu

ROWS, WIDTH, VOCAB = 5, 24, 9
Case = Callable[[str, torch.dtype], tuple[Any, ...]]


def tensor(*shape: int) -> Callable[[str, torch.dtype], Tensor]:
    return lambda device, dtype: torch.randn(shape, device=device).to(dtype)


def tensors(*shapes: tuple[int, ...]) -> Callable[[str, torch.dtype], list[Tensor]]:
    return lambda device, dtype: [tensor(*shape)(device, dtype) for shape in shapes]


def statistic(*shape: int) -> Callable[[str, torch.dtype], Tensor]:
    return lambda device, dtype: torch.rand(shape, device=device) + 0.5


def places(count: int) -> Callable[[str, torch.dtype], Tensor]:
    return lambda device, dtype: torch.arange(count, device=device).flip(0)


def tokens(device: str, dtype: torch.dtype) -> Tensor:
    return torch.randint(VOCAB, (ROWS,), device=device)


def targets(count: int, vocab: int) -> Callable[[str, torch.dtype], Tensor]:
    return lambda device, dtype: torch.arange(count, device=device) % vocab


# Arguments of each registered operator: values, or functions of device and dtype.
REGISTERED: dict[str, tuple[Any, ...]] = {
    "rms_norm": (tensor(ROWS, WIDTH), tensor(WIDTH), 1e-5, False),
    "rms_norm_backward": (tensor(ROWS, WIDTH), tensor(ROWS, WIDTH), tensor(WIDTH), statistic(ROWS)),
    "deepnorm_residual": (tensor(ROWS, WIDTH), tensor(ROWS, WIDTH), tensor(WIDTH), 1.7, 1e-5, False),
    "deepnorm_residual_backward": (
        tensor(ROWS, WIDTH),
        tensor(ROWS, WIDTH),
        tensor(ROWS, WIDTH),
        tensor(WIDTH),
        statistic(ROWS),
        1.7,
    ),
    "sum_rows": (statistic(ROWS, WIDTH), torch.float32),
    "rotary": (tensor(ROWS, 4, 8), places(ROWS), statistic(ROWS, 8), 1, False),
    "rotary_backward": (
        tensor(ROWS, 2, 8),
        tensor(ROWS, 1, 8),
        tensor(ROWS, 1, 8),
        places(ROWS),
        statistic(ROWS, 8),
        True,
    ),
    "gated_linear_unit": (tensors((ROWS, 2 * WIDTH)), "tanh"),
    "gated_linear_unit_backward": (tensor(ROWS, WIDTH), tensors((ROWS, WIDTH), (ROWS, WIDTH)), "none"),
    "bias_gelu": (tensor(ROWS, WIDTH), tensor(WIDTH)),
    "bias_gelu_backward": (tensor(ROWS, WIDTH), tensor(ROWS, WIDTH), tensor(WIDTH)),
    "adamw": (
        tensor(WIDTH),
        statistic(WIDTH),
        tensor(WIDTH),
        statistic(WIDTH),
        statistic(WIDTH),
        statistic(),
        7,
        *(1e-3, 1e-2, 1.5, 0.9, 0.95, 1e-8),
    ),
    "square_norm": (statistic(WIDTH),),
    "embedding_norm": (tokens, tensor(VOCAB, WIDTH), tensor(WIDTH), 1e-5),
    "embedding_norm_backward": (
        tensor(ROWS, WIDTH),
        tokens,
        tensor(VOCAB, WIDTH),
        tensor(WIDTH),
        statistic(ROWS),
    ),
    "layer_norm": (tensor(ROWS, WIDTH), tensor(WIDTH), tensor(WIDTH), 1e-5),
    "residual_layer_norm": (tensor(ROWS, WIDTH), tensor(ROWS, WIDTH), tensor(WIDTH), tensor(WIDTH), 1e-5),
    "layer_norm_backward": (
        tensor(ROWS, WIDTH),
        tensor(ROWS, WIDTH),
        tensor(ROWS, WIDTH),
        tensor(WIDTH),
        statistic(2 * ROWS),
    ),
    "cross_entropy": (tensor(ROWS, VOCAB), targets(ROWS, VOCAB), -100, 0.1),
    "cross_entropy_backward": (
        statistic(ROWS),
        tensor(ROWS, VOCAB),
        targets(ROWS, VOCAB),
        statistic(ROWS),
        statistic(ROWS),
        -100,
        0.1,
    ),
    "linear_cross_entropy": (tensor(ROWS, WIDTH), tensor(VOCAB, WIDTH), targets(ROWS, VOCAB), -100, 0.1, True, True),
    "linear_cross_entropy_backward": (
        statistic(ROWS),
        tensor(ROWS, WIDTH),
        tensor(VOCAB, WIDTH),
        targets(ROWS, VOCAB),
        tensor(ROWS, WIDTH),
        statistic(VOCAB, WIDTH),
        -100,
        0.1,
    ),
}

# Public functions of floating-point tensors alone, with the shapes of their inputs.
PUBLIC: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "rms_norm": (lambda x, w: rms_norm(x, w, 1e-5), [(ROWS, WIDTH), (WIDTH,)]),
    "deepnorm_residual": (
        lambda x, f, w: deepnorm_residual_and_sum(x, f, w, 1.7, 1e-5),
        [(ROWS, WIDTH), (ROWS, WIDTH), (WIDTH,)],
    ),
    "rotary": (
        lambda qkv: rotary(
            qkv, torch.arange(ROWS, device=qkv.device), rotary_table(ROWS, 8, 10000.0, qkv.device), kv_heads=1
        ),
        [(ROWS, 4, 8)],
    ),
    "geglu": (lambda gate_up: geglu(gate_up.clone(), overwrite=True), [(ROWS, 2 * WIDTH)]),
    "swiglu": (lambda gate_up: swiglu(gate_up.clone(), overwrite=True), [(ROWS, 2 * WIDTH)]),
    "geglu_split": (lambda gate, up: geglu_split(gate, up, "none"), [(ROWS, WIDTH), (ROWS, WIDTH)]),
    "bias_gelu": (lambda x, bias: bias_gelu(x.clone(), bias, overwrite=True), [(ROWS, WIDTH), (WIDTH,)]),
    "embedding_norm": (
        lambda table, w: embedding_norm(torch.arange(ROWS, device=table.device) // 2, table, w, 1e-5),
        [(VOCAB, WIDTH), (WIDTH,)],
    ),
    "layer_norm": (lambda x, w, b: layer_norm(x, w, b, 1e-5), [(ROWS, WIDTH), (WIDTH,), (WIDTH,)]),
    "residual_layer_norm": (
        lambda x, f, w, b: residual_layer_norm(x, f, w, b, 1e-5),
        [(ROWS, WIDTH), (ROWS, WIDTH), (WIDTH,), (WIDTH,)],
    ),
    # Losses are fp32 whatever goes in; rounded here to be as the others are.
    "cross_entropy": (
        lambda x: cross_entropy(x, targets(ROWS, VOCAB)(x.device, x.dtype), z_loss=0.1).to(x.dtype),
        [(ROWS, VOCAB)],
    ),
    "linear_cross_entropy": (
        lambda h, w: linear_cross_entropy(h, w, targets(ROWS, VOCAB)(h.device, h.dtype), z_loss=0.01).to(h.dtype),
        [(ROWS, WIDTH), (VOCAB, WIDTH)],
    ),
}


def arguments(name: str, device: str, dtype: torch.dtype) -> tuple[Any, ...]:
    torch.manual_seed(0)
    return tuple(
        value(device, dtype) if callable(value) and not isinstance(value, torch.dtype) else value
        for value in REGISTERED[name]
    )


def test_every_registered_operator_has_a_case() -> None:
    registered = {name.removeprefix("mindllm::") for name in torch._C._dispatch_get_all_op_names() if "mindllm" in name}
    assert registered == set(REGISTERED)


@pytest.mark.parametrize("name", REGISTERED)
def test_opcheck(name: str, device: str) -> None:
    operator = getattr(torch.ops.mindllm, name).default
    torch.library.opcheck(operator, arguments(name, device, torch.bfloat16))


@pytest.mark.usefixtures("triton_kernels")
@pytest.mark.parametrize("name", PUBLIC)
def test_compiles_into_one_graph(name: str, device: str) -> None:
    function, shapes = PUBLIC[name]

    def loss(*values: Tensor) -> Tensor:
        outputs = function(*values)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return sum((out * out).float().sum() for out in outputs)

    torch.manual_seed(0)
    torch._dynamo.reset()  # it counts the compilations of one piece of code, which `loss` is for all operators
    values = [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]
    eager = torch.autograd.grad(loss(*values), values)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*values), values)
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("triton_kernels")
@pytest.mark.parametrize("name", PUBLIC)
def test_shapes_on_the_meta_device(name: str, device: str) -> None:
    function, shapes = PUBLIC[name]
    values = [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]
    metas = [torch.empty(shape, device="meta", requires_grad=True) for shape in shapes]
    for out, meta in zip(_tuple(function(*values)), _tuple(function(*metas)), strict=True):
        assert (meta.shape, meta.dtype, meta.stride()) == (out.shape, out.dtype, out.stride())
        assert meta.is_meta
    gradients = torch.autograd.grad(
        _tuple(function(*metas)), metas, [torch.empty_like(x) for x in _tuple(function(*metas))]
    )
    assert [gradient.shape for gradient in gradients] == [value.shape for value in values]


@pytest.mark.usefixtures("triton_kernels")
@pytest.mark.parametrize("name", PUBLIC)
def test_autocast_with_parameters_in_fp32(name: str, device: str) -> None:
    function, shapes = PUBLIC[name]
    torch.manual_seed(0)
    activations = [torch.randn(shape, device=device).bfloat16().requires_grad_() for shape in shapes if len(shape) > 1]
    weights = [torch.randn(shape, device=device, requires_grad=True) for shape in shapes if len(shape) == 1]
    with torch.autocast(device, torch.bfloat16):
        outputs = _tuple(function(*activations, *weights))
    assert all(out.dtype == torch.bfloat16 for out in outputs)
    exact = _tuple(function(*(x.double() for x in activations), *(w.double() for w in weights)))
    for out, truth in zip(outputs, exact, strict=True):
        torch.testing.assert_close(out.double(), truth, rtol=2**-7, atol=2**-7)
    gradients = torch.autograd.grad(sum(out.float().sum() for out in outputs), [*activations, *weights])
    assert [g.dtype for g in gradients] == [x.dtype for x in (*activations, *weights)]


def _tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)
