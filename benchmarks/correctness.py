"""Is each implementation right? Errors against fp64 on fresh random inputs, beside those of torch eager."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.operator_cases import OperatorCase
from benchmarks.peers import Peer, one_line
from benchmarks.timing import tensors_in

DTYPE = torch.bfloat16
# Tokens of the check: no multiple of any tile. Floating-point elements of its inputs at most: an interpreted kernel
# takes a millisecond a program, and fp64 takes eight bytes an element, several times over.
CHECK_TOKENS = {"cuda": 4099, "cpu": 7}
CHECK_ELEMENTS = {"cuda": 1 << 30, "cpu": 1 << 19}
OUTPUT_SLACK, GRADIENT_SLACK = 1e-5, 1e-4
# A peer this far from the truth computes something else.
PEER_ERROR = 0.05


@dataclass(frozen=True)
class Variant:
    """An implementation that takes part: ours, torch eager, or a peer."""

    peer: Peer
    mutates: bool = False
    error: float | None = None

    @property
    def name(self) -> str:
        return self.peer.name


@dataclass(frozen=True)
class Result:
    """What one run of an implementation gives: `written` by its forward, `mutates` arguments in either direction."""

    outputs: list[Tensor]
    gradients: list[Tensor | None]
    written: dict[int, Tensor]
    mutates: bool


def own_peers(case: OperatorCase) -> list[Peer]:
    """Ours and torch eager, as the others are given."""
    ours = Peer("ours", lambda *args: partial(case.ours, *args), "")
    return [ours, Peer("torch eager", lambda *args: partial(case.eager, *args), "")]


def fits(case: OperatorCase, tokens: int, device: torch.device) -> bool:
    """Whether the check's inputs are small enough, learnt from tensors without memory."""
    arguments = case.make(tokens, torch.device("meta"), DTYPE)
    return sum(x.numel() for x in tensors_in(arguments) if x.is_floating_point()) <= CHECK_ELEMENTS[device.type]


class _Alias(torch.autograd.Function):
    """The same memory as a tensor that an operation has made, so that an operator may work in place on it."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor) -> Tensor:
        alias = torch.empty(0, dtype=leaf.dtype, device=leaf.device)
        return alias.set_(leaf.untyped_storage(), leaf.storage_offset(), leaf.shape, leaf.stride())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Inputs:
    """Arguments of an operator, and the leaves that gradients are taken for.

    An argument that requires a gradient and is no leaf, as a projection's output is none, is given as a new tensor over
    the leaf's memory at each call: an operator that works in place on it then finds no graph of an earlier call.
    """

    def __init__(self, args: Sequence[Any], copy: bool = False, wide: bool = False) -> None:
        self.made = [isinstance(arg, Tensor) and arg.requires_grad and not arg.is_leaf for arg in args]
        self.args: list[Any] = []
        for arg in args:
            if isinstance(arg, Tensor):
                value = arg.detach().clone() if copy else arg.detach()
                value = value.double() if wide and value.is_floating_point() else value
                arg = value.requires_grad_(arg.requires_grad)
            self.args.append(arg)
        self.leaves = [x for x in tensors_in(self.args) if x.requires_grad]

    def bind(self, peer: Peer) -> Callable[[], Any]:
        """A call of an implementation on these arguments."""
        bind = peer.bind
        assert bind is not None
        if not any(self.made):
            return bind(*self.args)
        return lambda: bind(*(_Alias.apply(x) if made else x for x, made in zip(self.args, self.made, strict=True)))()


def upstream_of(outputs: Sequence[Tensor], random: bool = False) -> list[Tensor]:
    """Gradients to start backward from: random, and for losses one, as training gives them: expanded, not stored.

    Random ones depend on the shapes alone, and are rounded to the dtype of training whatever the outputs' is.
    """
    gradients = []
    for index, out in enumerate(outputs):
        if out.ndim < 2:
            gradients.append(torch.ones((), dtype=out.dtype, device=out.device).expand(out.shape))
        elif random:
            gradients.append(torch.randn_like(out))
        else:
            generator = torch.Generator(out.device).manual_seed(index)
            noise = torch.randn(out.shape, generator=generator, device=out.device, dtype=DTYPE)
            gradients.append(noise.to(out.dtype))
    return gradients


def differentiable(returned: Any) -> list[Tensor]:
    return [x for x in tensors_in(returned) if x.requires_grad]


def run_once(peer: Peer, args: Sequence[Any], wide: bool = False) -> Result:
    """Outputs and gradients on copies of the arguments; `written` are the arguments it has changed, by place."""
    inputs = Inputs(args, copy=True, wide=wide)
    before = [x.detach().clone() for x in tensors_in(inputs.args)]
    returned = inputs.bind(peer)()
    outputs = differentiable(returned)
    detached = [x.detach().clone() for x in tensors_in(returned)]
    after = [x.detach() for x in tensors_in(inputs.args)]
    written = {i: new.clone() for i, (old, new) in enumerate(zip(before, after, strict=True)) if not old.equal(new)}
    gradients: list[Tensor | None] = []
    if outputs:
        gradients = list(torch.autograd.grad(outputs, inputs.leaves, upstream_of(outputs), allow_unused=True))
    changed = any(not old.equal(new) for old, new in zip(before, after, strict=True))
    return Result(detached, gradients, written, changed)


@contextmanager
def poisoned_memory(wanted: bool) -> Iterator[None]:
    """`torch.empty` and its kin give NaN within, so that an element nobody writes is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def distances(result: Result, truth: Result) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(kind, value, truth) of every output and gradient; a sum of losses is compared with the sum."""
    if len(result.outputs) > len(truth.outputs) or len(result.gradients) != len(truth.gradients):
        raise ValueError(f"gives {len(result.outputs)} outputs and {len(result.gradients)} gradients")
    for value, exact in zip(result.outputs, truth.outputs, strict=False):
        exact = exact.sum() if value.ndim == 0 else exact
        if value.shape != exact.shape:
            raise ValueError(f"gives an output of shape {tuple(value.shape)}, not {tuple(exact.shape)}")
        yield "output", value.double(), exact
    if not truth.gradients:  # an optimizer: what it writes is what it is for
        for place, exact in truth.written.items():
            if exact.is_floating_point():
                yield f"argument {place}", result.written[place].double(), exact
    for index, (gradient, exact_gradient) in enumerate(zip(result.gradients, truth.gradients, strict=True)):
        if exact_gradient is None:
            continue
        if gradient is None:
            raise ValueError(f"gives no gradient {index}")
        yield "gradient", gradient.double(), exact_gradient


def relative_error(result: Result, truth: Result) -> float:
    """The largest over outputs and gradients of |value - truth| / |truth|, infinite where there is a NaN."""
    errors = []
    for _, value, exact in distances(result, truth):
        error = ((value - exact).norm() / exact.norm().clamp(min=1e-30)).item()
        errors.append(error if error == error else float("inf"))
    return max(errors, default=0.0)


def wrong(ours: Result, eager: Result, truth: Result) -> str | None:
    """Why ours is wrong, or None: its error is at most twice eager's and a slack, at the worst and on average.

    The slack of outputs is relative above 1. Where the truth is eager itself, the rounding of the values stands for
    eager's error.
    """
    triples = zip(distances(ours, truth), distances(eager, truth), strict=True)
    for index, ((kind, mine, exact), (_, theirs, _)) in enumerate(triples):
        largest = exact.abs().max().item()
        slack = OUTPUT_SLACK * max(1.0, largest)
        if eager is truth:
            slack += 2 * torch.finfo(exact.dtype).eps * largest
        if kind == "gradient":
            slack = GRADIENT_SLACK + 2 * torch.finfo(DTYPE).eps * largest
        mine, theirs = (mine - exact).abs(), (theirs - exact).abs()
        for name, reduce in (("at the worst", torch.max), ("on average", torch.mean)):
            off, allowed = reduce(mine).item(), 2 * reduce(theirs).item() + slack
            if not off <= allowed:
                return f"{kind} {index} is off by {off:.3g} {name}, allowed are {allowed:.3g}"
    return None


@dataclass(frozen=True)
class Checked:
    """Which implementations of a case take part, which do not and why, and what is wrong with ours, if anything.

    `truth` is what they were compared with, on so many `tokens`.
    """

    variants: list[Variant]
    absent: list[Peer]
    failure: str | None
    tokens: int
    truth: str


def truth_of(peer: Peer, args: Sequence[Any], eager: Result) -> tuple[Result, str]:
    """Torch eager in fp64; itself where it has dtypes of its own, as an optimizer over the bits of its weights has."""
    if not any(isinstance(x, Tensor) and x.dtype == torch.int16 for x in args):
        try:
            return run_once(peer, args, wide=True), "fp64"
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            pass
    return eager, "torch eager"


def check(case: OperatorCase, peers: list[Peer], device: torch.device) -> Checked:
    """Compare every implementation of a case with fp64."""
    tokens = CHECK_TOKENS[device.type]
    while tokens > 1 and not fits(case, tokens, device):
        tokens //= 2
    args = case.make(tokens, device, DTYPE)
    own = own_peers(case)
    eager = run_once(own[1], args)
    truth, truth_name = truth_of(own[1], args, eager)
    variants: list[Variant] = []
    absent: list[Peer] = []
    failure = None
    for peer in own + peers:
        if peer.bind is None:
            absent.append(peer)
            continue
        if not peer.exact:
            variants.append(Variant(peer))
            continue
        try:
            with poisoned_memory(peer.name == "ours"):
                result = eager if peer.name == "torch eager" else run_once(peer, args)
            error = relative_error(result, truth)
            if peer.name == "ours":
                failure = wrong(result, eager, truth)
            elif peer.name != "torch eager" and not error < PEER_ERROR:
                raise ValueError(f"off by {error:.2g} from the truth")
            variants.append(Variant(peer, result.mutates, error))
        except Exception as error_raised:
            if peer.name == "ours":
                failure = one_line(error_raised)
            absent.append(replace(peer, bind=None, note=one_line(error_raised)))
    return Checked(variants, absent, failure, tokens, truth_name)
