"""Is each implementation right? Errors against fp64 on fresh random inputs, beside those of torch eager."""

from collections.abc import Iterator, Sequence
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
CHECK_ELEMENTS = {"cuda": 1 << 30, "cpu": 1 << 16}
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
    """What one run of an implementation gives."""

    outputs: list[Tensor]
    gradients: list[Tensor | None]
    mutated: bool


def own_peers(case: OperatorCase) -> list[Peer]:
    """Ours and torch eager, as the others are given."""
    ours = Peer("ours", lambda *args: partial(case.ours, *args), "")
    return [ours, Peer("torch eager", lambda *args: partial(case.eager, *args), "")]


def fits(case: OperatorCase, tokens: int, device: torch.device) -> bool:
    """Whether the check's inputs are small enough, learnt from tensors without memory."""
    arguments = case.make(tokens, torch.device("meta"), DTYPE)
    return sum(x.numel() for x in tensors_in(arguments) if x.is_floating_point()) <= CHECK_ELEMENTS[device.type]


def fresh(args: Sequence[Any], wide: bool = False) -> list[Any]:
    """Copies of the arguments, in fp64 where `wide`, that require a gradient where the arguments do."""
    copies: list[Any] = []
    for arg in args:
        if isinstance(arg, Tensor):
            copy = arg.detach().clone()
            copy = copy.double() if wide and copy.is_floating_point() else copy
            arg = copy.requires_grad_(arg.requires_grad)
        copies.append(arg)
    return copies


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
    """Outputs and gradients on copies of the arguments. An operator that returns nothing gives what it has written."""
    assert peer.bind is not None
    inputs = fresh(args, wide)
    returned = peer.bind(*inputs)()
    leaves = [x for x in tensors_in(inputs) if x.requires_grad]
    outputs = differentiable(returned)
    gradients: list[Tensor | None] = []
    detached = [x.detach().clone() for x in tensors_in(returned)]
    if outputs:
        gradients = list(torch.autograd.grad(outputs, leaves, upstream_of(outputs), allow_unused=True))
    before = [x.double() if wide and x.is_floating_point() else x for x in tensors_in(list(args))]
    after = tensors_in(inputs)
    changed = [new for old, new in zip(before, after, strict=True) if not torch.equal(old.detach(), new.detach())]
    return Result(detached or [x for x in after if x.is_floating_point()], gradients, bool(changed))


def distances(result: Result, truth: Result) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(kind, value, truth) of every output and gradient; a sum of losses is compared with the sum."""
    if len(result.outputs) > len(truth.outputs) or len(result.gradients) != len(truth.gradients):
        raise ValueError(f"gives {len(result.outputs)} outputs and {len(result.gradients)} gradients")
    for value, exact in zip(result.outputs, truth.outputs, strict=False):
        exact = exact.sum() if value.ndim == 0 else exact
        if value.shape != exact.shape:
            raise ValueError(f"gives an output of shape {tuple(value.shape)}, not {tuple(exact.shape)}")
        yield "output", value.double(), exact
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
    """Why ours is wrong, or None: its error is at most twice eager's and a slack, at the worst and on average."""
    triples = zip(distances(ours, truth), distances(eager, truth), strict=True)
    for index, ((kind, mine, exact), (_, theirs, _)) in enumerate(triples):
        slack = OUTPUT_SLACK
        if kind == "gradient":
            slack = GRADIENT_SLACK + 2 * torch.finfo(DTYPE).eps * exact.abs().max().item()
        mine, theirs = (mine - exact).abs(), (theirs - exact).abs()
        for name, reduce in (("at the worst", torch.max), ("on average", torch.mean)):
            off, allowed = reduce(mine).item(), 2 * reduce(theirs).item() + slack
            if not off <= allowed:
                return f"{kind} {index} is off by {off:.3g} {name}, allowed are {allowed:.3g}"
    return None


@dataclass(frozen=True)
class Checked:
    """Which implementations of a case take part, which do not and why, and what is wrong with ours, if anything."""

    variants: list[Variant]
    absent: list[Peer]
    failure: str | None
    tokens: int


def check(case: OperatorCase, peers: list[Peer], device: torch.device) -> Checked:
    """Compare every implementation of a case with fp64."""
    tokens = CHECK_TOKENS[device.type]
    while tokens > 1 and not fits(case, tokens, device):
        tokens //= 2
    args = case.make(tokens, device, DTYPE)
    own = own_peers(case)
    truth = run_once(own[1], args, wide=True)
    eager = run_once(own[1], args)
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
            result = eager if peer.name == "torch eager" else run_once(peer, args)
            error = relative_error(result, truth)
            if peer.name == "ours":
                failure = wrong(result, eager, truth)
            elif peer.name != "torch eager" and not error < PEER_ERROR:
                raise ValueError(f"off by {error:.2g} from the truth")
            variants.append(Variant(peer, result.mutated, error))
        except Exception as error_raised:
            if peer.name == "ours":
                failure = one_line(error_raised)
            absent.append(replace(peer, bind=None, note=one_line(error_raised)))
    return Checked(variants, absent, failure, tokens)
