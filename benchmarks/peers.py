"""Other implementations of the operators: those that import, and for the others the reason why they do not.

A peer takes the arguments of its case's `eager` and computes the same, checked against the same truth before it is
timed. What it may prepare outside its time (the layout of a table, say) it prepares in `bind`. A *bound* does less than
the operator, such as bare matrix products; it is timed and not checked.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.operator_cases import ALPHA, EPS, OperatorCase

Bind = Callable[..., Callable[[], Any]]


@dataclass(frozen=True)
class Peer:
    """One other implementation of an operator.

    Attributes:
        name: whose it is: "liger", "torch.compile".
        bind: (arguments of `eager`) -> a call without arguments; None where it is absent.
        note: which function it is, or why it is absent.
        exact: computes the same as `eager`, so that it can be checked.
        bound: does less than the operator: a bound on its time, not counted among the peers.
        no_grad: does forward and backward itself, without autograd.
    """

    name: str
    bind: Bind | None
    note: str
    exact: bool = True
    bound: bool = False
    no_grad: bool = False


def peers_of(case: OperatorCase, device: torch.device) -> list[Peer]:
    """Every peer of a case's operator but torch.compile, absent ones with a reason."""
    found = []
    for name, package, make in PEERS.get(case.operator, ()):
        if device.type != "cuda":
            found.append(Peer(name, None, "needs a GPU"))
            continue
        try:
            importlib.import_module(package)
            found.append(make(name))
        except Exception as error:  # a peer that does not import may fail in any way
            found.append(Peer(name, None, f"{package} does not import: {one_line(error)}"))
    return found


def one_line(error: BaseException) -> str:
    """The type of an error and the first line of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def compiled(case: OperatorCase, device: torch.device, mode: str | None) -> Peer:
    """`torch.compile` of the case's eager function; None for `mode` leaves it out. One shape only."""
    if device.type != "cuda":
        return Peer("torch.compile", None, "needs a GPU")
    if mode is None:
        return Peer("torch.compile", None, "its share of the time budget is spent")
    torch._dynamo.reset()  # cases share code: their recompilations would turn sizes dynamic, then give up
    function = torch.compile(case.eager, mode=mode, dynamic=False)
    return Peer("torch.compile", lambda *args: partial(function, *args), mode, exact=False)


def simple(function: Callable[..., Any], note: str) -> Callable[[str], Peer]:
    """A peer that takes the arguments as they are."""
    return lambda name: Peer(name, lambda *args: partial(function, *args), note)


def find(package: str, name: str) -> Any:
    """An attribute of a module, imported now."""
    return getattr(importlib.import_module(package), name)


# ------------------------------------------------------------------------------------------------------ norms


def liger_rms_norm(name: str) -> Peer:
    apply = find("liger_kernel.ops", "LigerRMSNormFunction").apply
    return simple(
        lambda x, weight: apply(x, weight, EPS, 0.0, "gemma", False), "LigerRMSNormFunction in fp32 throughout"
    )(name)


def flash_rms_norm(name: str) -> Peer:
    rms_norm_fn = find("flash_attn.ops.triton.layer_norm", "rms_norm_fn")
    return simple(lambda x, weight: rms_norm_fn(x, weight, None, eps=EPS), "rms_norm_fn")(name)


def quack_rms_norm(name: str) -> Peer:
    rmsnorm = find("quack.rmsnorm", "rmsnorm")
    return simple(lambda x, weight: rmsnorm(x, weight, eps=EPS), "quack.rmsnorm")(name)


def apex_rms_norm(name: str) -> Peer:
    apply = find("apex.normalization.fused_layer_norm", "fused_rms_norm_affine")
    return simple(lambda x, weight: apply(x, weight, weight.shape, EPS), "fused_rms_norm_affine")(name)


def engine_norm(kind: str, *names: str) -> Callable[[str], Peer]:
    """Transformer Engine's norm modules, which own their weights: it is given the case's."""

    def make(name: str) -> Peer:
        module_class = find("transformer_engine.pytorch", kind)

        def bind(x: Tensor, *weights: Tensor) -> Callable[[], Tensor]:
            module = module_class(x.shape[-1], eps=EPS, device=x.device, params_dtype=x.dtype)
            for attribute, weight in zip(names, weights, strict=True):
                delattr(module, attribute)
                object.__setattr__(module, attribute, weight)
            return partial(module, x)

        return Peer(name, bind, kind)

    return make


def after_sum(make: Callable[[str], Peer]) -> Callable[[str], Peer]:
    """A peer's norm after torch's `alpha * x + f`: no peer's fused residual has DeepNorm's alpha."""

    def residual(name: str) -> Peer:
        peer = make(name)
        assert peer.bind is not None
        norm = peer.bind
        return Peer(name, lambda x, f, *w: lambda: norm(torch.add(f, x, alpha=ALPHA), *w)(), f"add, then {peer.note}")

    return residual


def liger_add_rms_norm(name: str) -> Peer:
    apply = find("liger_kernel.ops", "LigerFusedAddRMSNormFunction").apply
    note = "LigerFusedAddRMSNormFunction: without alpha"
    return Peer(
        name,
        lambda x, f, weight: lambda: apply(x, f, weight, EPS, 0.0, "gemma", False)[0],
        note,
        exact=False,
        bound=True,
    )


def quack_add_rms_norm(name: str) -> Peer:
    rmsnorm = find("quack.rmsnorm", "rmsnorm")
    note = "quack.rmsnorm with residual: without alpha"
    return Peer(
        name,
        lambda x, f, weight: lambda: rmsnorm(x, weight, residual=f, eps=EPS, prenorm=True)[0],
        note,
        exact=False,
        bound=True,
    )


def liger_layer_norm(name: str) -> Peer:
    apply = find("liger_kernel.ops", "LigerLayerNormFunction").apply
    return simple(lambda x, w, b: apply(x, w, b, EPS), "LigerLayerNormFunction")(name)


def flash_layer_norm(name: str) -> Peer:
    layer_norm_fn = find("flash_attn.ops.triton.layer_norm", "layer_norm_fn")
    return simple(lambda x, w, b: layer_norm_fn(x, w, b, eps=EPS), "layer_norm_fn")(name)


def apex_layer_norm(name: str) -> Peer:
    apply = find("apex.normalization.fused_layer_norm", "fused_layer_norm_affine")
    return simple(lambda x, w, b: apply(x, w, b, w.shape, EPS), "fused_layer_norm_affine")(name)


def flash_residual_layer_norm(name: str) -> Peer:
    layer_norm_fn = find("flash_attn.ops.triton.layer_norm", "layer_norm_fn")

    def call(x: Tensor, f: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        normed, total = layer_norm_fn(f, w, b, residual=x, eps=EPS, prenorm=True)
        return total, normed

    return simple(call, "layer_norm_fn with residual")(name)


def sum_then_layer_norm(make: Callable[[str], Peer]) -> Callable[[str], Peer]:
    """A peer's LayerNorm after torch's `x + f`; gives the sum and the norm."""

    def residual(name: str) -> Peer:
        peer = make(name)
        assert peer.bind is not None
        norm = peer.bind

        def bind(x: Tensor, f: Tensor, w: Tensor, b: Tensor) -> Callable[[], Any]:
            def call() -> tuple[Tensor, Tensor]:
                total = x + f
                return total, norm(total, w, b)()

            return call

        return Peer(name, bind, f"add, then {peer.note}")

    return residual


def embedding_then(make: Callable[[str], Peer]) -> Callable[[str], Peer]:
    """torch's embedding, then a peer's norm."""

    def embedding(name: str) -> Peer:
        peer = make(name)
        assert peer.bind is not None
        norm = peer.bind
        return Peer(
            name,
            lambda tokens, table, weight: lambda: norm(torch.nn.functional.embedding(tokens, table), weight)(),
            f"embedding, then {peer.note}",
        )

    return embedding


# ------------------------------------------------------------------------------------------ activations, rotary


def liger_geglu(name: str) -> Peer:
    apply = find("liger_kernel.ops", "LigerGELUMulFunction").apply
    return simple(
        lambda *args: apply(*(args if len(args) == 2 else args[0].chunk(2, dim=-1))),
        "LigerGELUMulFunction",
    )(name)


def liger_swiglu(name: str) -> Peer:
    apply = find("liger_kernel.ops", "LigerSiLUMulFunction").apply
    return simple(lambda gate_up: apply(*gate_up.chunk(2, dim=-1)), "LigerSiLUMulFunction")(name)


@lru_cache(maxsize=8)
def gathered(positions: Tensor, table: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of each token (tokens, head_dim / 2): no peer takes positions."""
    cos, sin = (part.contiguous().to(dtype) for part in table[positions].chunk(2, dim=-1))
    return cos, sin


def liger_rotary(name: str) -> Peer:
    apply = find("liger_kernel.ops", "LigerRopeFunction").apply

    def bind(qkv: Tensor, positions: Tensor, table: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        cos, sin = (torch.cat((part, part), dim=-1).unsqueeze(0) for part in gathered(positions, table, qkv.dtype))

        def call() -> tuple[Tensor, ...]:
            q, k, v = qkv.chunk(3, dim=1)
            rotated = apply(*(x.unsqueeze(0).transpose(1, 2) for x in (q, k)), cos, sin)
            return (*(x.transpose(1, 2).squeeze(0) for x in rotated), v)

        return call

    return Peer(name, bind, "LigerRopeFunction; cos and sin gathered beforehand")


def rotary_qkv(package: str) -> Callable[[str], Peer]:
    """`apply_rotary_emb_qkv_` of flash-attn and QuACK, in place on the packed tensor."""

    def make(name: str) -> Peer:
        apply = find(package, "apply_rotary_emb_qkv_")

        def bind(qkv: Tensor, positions: Tensor, table: Tensor) -> Callable[[], tuple[Tensor, ...]]:
            cos, sin = gathered(positions, table, qkv.dtype)
            tokens, heads, head_dim = qkv.shape
            packed = qkv.view(1, tokens, 3, heads // 3, head_dim)
            return lambda: apply(packed, cos, sin).view(qkv.shape).chunk(3, dim=1)

        return Peer(name, bind, "apply_rotary_emb_qkv_; cos and sin gathered beforehand")

    return make


# ------------------------------------------------------------------------------------------------- cross-entropy


def liger_cross_entropy(name: str) -> Peer:
    apply = find("liger_kernel.ops", "LigerCrossEntropyFunction").apply
    return simple(
        lambda logits, targets: apply(logits, targets, None, -100, 0.0, 0.0, "sum")[0],
        "LigerCrossEntropyFunction, sum, gradients into the logits",
    )(name)


def flash_cross_entropy(name: str) -> Peer:
    loss = find("flash_attn.ops.triton.cross_entropy", "cross_entropy_loss")
    return simple(
        lambda logits, targets: loss(logits, targets, ignore_index=-100, inplace_backward=True)[0],
        "cross_entropy_loss, gradients into the logits",
    )(name)


def quack_cross_entropy(name: str) -> Peer:
    loss = find("quack.cross_entropy", "cross_entropy")
    return simple(
        lambda logits, targets: loss(logits, targets, reduction="none", inplace_backward=True),
        "quack.cross_entropy, gradients into the logits",
    )(name)


def liger_linear_cross_entropy(name: str) -> Peer:
    apply = find("liger_kernel.ops", "LigerFusedLinearCrossEntropyFunction").apply

    def call(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        out = apply(hidden, weight, targets, None, None, -100, 0.0, 0.0, "sum")
        return out[0] if isinstance(out, tuple) else out

    return simple(call, "LigerFusedLinearCrossEntropyFunction, sum")(name)


def quack_linear_cross_entropy(name: str) -> Peer:
    loss = find("quack.linear_cross_entropy", "chunked_linear_cross_entropy")
    return simple(
        lambda hidden, weight, targets: loss(hidden, weight, targets, reduction="sum"),
        "chunked_linear_cross_entropy, sum",
    )(name)


def three_products(name: str) -> Peer:
    """The matrix products of forward and backward alone, on logits that lie in memory as a whole."""

    def bind(hidden: Tensor, weight: Tensor, *others: Tensor) -> Callable[[], Tensor]:
        hidden, weight = hidden.detach(), weight.detach()
        logits = torch.randn(hidden.shape[0], weight.shape[0], device=hidden.device, dtype=hidden.dtype)
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.empty_like(weight)

        def call() -> Tensor:
            torch.mm(hidden, weight.t(), out=logits)
            torch.mm(logits, weight, out=grad_hidden)
            return torch.mm(logits.t(), hidden, out=grad_weight)

        return call

    return Peer(name, bind, "torch.mm, three times", exact=False, bound=True, no_grad=True)


# -------------------------------------------------------------------------------------------------- optimizer


def torch_fused_adamw(name: str) -> Peer:
    """`torch._fused_adamw_` on the fp32 master weights, then the copy to bf16."""

    def bind(param: Tensor, master: Tensor, grad: Tensor, m: Tensor, v: Tensor, *rest: Any) -> Callable[[], None]:
        step = torch.ones((), device=param.device)
        gradient = grad.float()
        master = param.float() if master.dtype == torch.int16 else master  # a split master is ours alone

        def call() -> None:
            torch._fused_adamw_(
                [master],
                [gradient],
                [m],
                [v],
                [],
                [step],
                lr=3e-4,
                beta1=0.9,
                beta2=0.95,
                weight_decay=0.1,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )
            param.copy_(master)

        return call

    return Peer(name, bind, "torch._fused_adamw_ on fp32 and a copy; constants of its own", exact=False)


def apex_adamw(name: str) -> Peer:
    """apex's multi-tensor Adam on the fp32 master weights, then the copy to bf16."""
    apply = find("apex.multi_tensor_apply", "multi_tensor_applier")
    amp_C = importlib.import_module("amp_C")

    def bind(param: Tensor, master: Tensor, grad: Tensor, m: Tensor, v: Tensor, *rest: Any) -> Callable[[], None]:
        overflow = torch.zeros(1, dtype=torch.int, device=param.device)
        master = param.float() if master.dtype == torch.int16 else master
        lists = [[grad.float()], [master], [m], [v]]

        def call() -> None:
            apply(amp_C.multi_tensor_adam, overflow, lists, 3e-4, 0.9, 0.95, 1e-8, 1, 1, 1, 0.1)
            param.copy_(master)

        return call

    return Peer(name, bind, "multi_tensor_adam on fp32 and a copy; constants of its own", exact=False)


def torch_square_norm(name: str) -> Peer:
    return simple(lambda x, *rest: torch.linalg.vector_norm(x.detach()).square(), "linalg.vector_norm, squared")(name)


Entry = tuple[str, str, Callable[[str], Peer]]
RMS_NORMS: tuple[Entry, ...] = (
    ("liger", "liger_kernel.ops", liger_rms_norm),
    ("flash-attn", "flash_attn.ops.triton.layer_norm", flash_rms_norm),
    ("quack", "quack.rmsnorm", quack_rms_norm),
    ("apex", "apex.normalization.fused_layer_norm", apex_rms_norm),
    ("transformer-engine", "transformer_engine.pytorch", engine_norm("RMSNorm", "weight")),
)
LAYER_NORMS: tuple[Entry, ...] = (
    ("liger", "liger_kernel.ops", liger_layer_norm),
    ("flash-attn", "flash_attn.ops.triton.layer_norm", flash_layer_norm),
    ("apex", "apex.normalization.fused_layer_norm", apex_layer_norm),
    ("transformer-engine", "transformer_engine.pytorch", engine_norm("LayerNorm", "weight", "bias")),
)
# Operator -> (name, the package it needs, how it is made).
PEERS: dict[str, tuple[Entry, ...]] = {
    "rms_norm": RMS_NORMS,
    "deepnorm_residual": (
        *((name, package, after_sum(make)) for name, package, make in RMS_NORMS),
        ("liger (no alpha)", "liger_kernel.ops", liger_add_rms_norm),
        ("quack (no alpha)", "quack.rmsnorm", quack_add_rms_norm),
    ),
    "embedding_norm": tuple((name, package, embedding_then(make)) for name, package, make in RMS_NORMS),
    "layer_norm": LAYER_NORMS,
    "residual_layer_norm": (
        ("flash-attn", "flash_attn.ops.triton.layer_norm", flash_residual_layer_norm),
        *((n, package, sum_then_layer_norm(make)) for n, package, make in LAYER_NORMS if n != "flash-attn"),
    ),
    "geglu": (("liger", "liger_kernel.ops", liger_geglu),),
    "swiglu": (("liger", "liger_kernel.ops", liger_swiglu),),
    "geglu_split": (("liger", "liger_kernel.ops", liger_geglu),),
    "rotary": (
        ("liger", "liger_kernel.ops", liger_rotary),
        ("flash-attn", "flash_attn.layers.rotary", rotary_qkv("flash_attn.layers.rotary")),
        ("quack", "quack.rotary", rotary_qkv("quack.rotary")),
    ),
    "cross_entropy": (
        ("liger", "liger_kernel.ops", liger_cross_entropy),
        ("flash-attn", "flash_attn.ops.triton.cross_entropy", flash_cross_entropy),
        ("quack", "quack.cross_entropy", quack_cross_entropy),
    ),
    "linear_cross_entropy": (
        ("three bare GEMMs", "torch", three_products),
        ("liger", "liger_kernel.ops", liger_linear_cross_entropy),
        ("quack", "quack.linear_cross_entropy", quack_linear_cross_entropy),
    ),
    "linear_cross_entropy_main_grad": (("three bare GEMMs", "torch", three_products),),
    "adamw": (
        ("torch fused", "torch", torch_fused_adamw),
        ("apex", "amp_C", apex_adamw),
    ),
    "square_norm": (("vector_norm", "torch", torch_square_norm),),
}


def rms_norm_implementation(device: torch.device) -> str:
    """The kernels that `F.rms_norm` launches: torch 2.13 and later may use QuACK's."""
    if device.type != "cuda":
        return "not run on a GPU"
    x, weight = torch.randn(64, 2560, device=device, dtype=torch.bfloat16), torch.ones(2560, device=device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        torch.nn.functional.rms_norm(x, (2560,), weight.to(x.dtype), EPS)
        torch.cuda.synchronize()
    return ", ".join(sorted({event.key[:100] for event in profile.key_averages()})) or "the profiler saw no kernel"


def versions() -> Iterator[tuple[str, str]]:
    """(package, version or "absent") of torch, Triton and everything peers come from."""
    from importlib.metadata import PackageNotFoundError, version

    packages = ("torch", "triton", "liger-kernel", "flash-attn", "quack-kernels", "apex", "transformer-engine")
    for package in (*packages, "transformers"):
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "absent"
