"""How large the activations of a MiniCPM network are, place by place, and how far training has moved them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mindllm_engine.data.loader import Batch, heldout_batches
from mindllm_engine.errors import DataError
from mindllm_engine.models.minicpm import MiniCPM
from mindllm_engine.studies.results import Result
from mindllm_engine.training.checkpoint import checkpoint_of
from mindllm_engine.training.setup import open_data
from mindllm_engine.training.weights import load_model


@dataclass(frozen=True)
class Sizes:
    """Root mean squares at one place, over all tokens and coordinates.

    Attributes:
        size: of the activation.
        change: of its difference from the fresh network's, on the same tokens.
    """

    size: float
    change: float


def activation_sizes(result: Result, steps: Sequence[int]) -> dict[int, dict[str, Sizes]]:
    """Step -> place -> sizes of a trial's network, on the first row of every source's held-out text.

    Step 0 is the fresh network, drawn again from the run's seed; the others are its checkpoints, in fp32.

    Raises:
        DataError, CheckpointError: no held-out text; a checkpoint is missing.
    """
    config = result.config
    fresh = config.model.build(device="cpu", dtype=torch.float32, seed=config.run.seed).eval()
    assert isinstance(fresh, MiniCPM)
    folder = Path(config.run.dir) / "checkpoints"
    networks: dict[int, Any] = {0: fresh}
    for step in steps:
        networks[step] = load_model(checkpoint_of(folder, step), torch.device("cpu"))[0]
    squares: dict[int, dict[str, list[float]]] = {step: {} for step in networks}
    for batch in _probe(result):
        first = activations(fresh, batch)
        for step, network in networks.items():
            for place, values in activations(network, batch).items():
                sums = squares[step].setdefault(place, [0.0, 0.0, 0.0])
                for slot, tensor in enumerate((values, values - first[place])):
                    sums[slot] += float(tensor.double().square().sum())
                sums[2] += values.numel()
    return {
        step: {
            place: Sizes((size / count) ** 0.5, (moved / count) ** 0.5) for place, (size, moved, count) in of.items()
        }
        for step, of in squares.items()
    }


@torch.no_grad()
def activations(model: MiniCPM, batch: Batch) -> Mapping[str, Tensor]:
    """Place -> activation, (T, hidden), of logits (T, vocab): the embedding as it enters the residual stream, what each
    layer's attention and feed-forward add to it, the stream after the last layer, and the logits."""
    found: dict[str, Tensor] = {}
    with _recorded(model) as calls:
        logits = model(batch.tokens, batch.positions, batch.cu_seqlens)
    scale = model.config.residual_scale
    for number, (x, branch, x_between, branch_after) in enumerate(calls, start=1):
        stream = x if branch is None else x + scale * branch
        if number == 1:
            found["embedding"] = stream
        found[f"layer {number} attention"] = x_between - stream
        found[f"layer {number} feed-forward"] = scale * branch_after
        found["residual stream"] = x_between + scale * branch_after
    return found | {"logits": logits}


@contextmanager
def _recorded(model: MiniCPM) -> Iterator[list[tuple[Tensor, Tensor | None, Tensor, Tensor]]]:
    """What every layer is given and gives while the network runs: (stream, branch to add) before and after."""
    calls: list[tuple[Tensor, Tensor | None, Tensor, Tensor]] = []

    def record(layer: torch.nn.Module, given: tuple[Any, ...], result: tuple[Tensor, Tensor]) -> None:
        calls.append((given[0], given[1], *result))

    hooks = [layer.register_forward_hook(record) for layer in model.layers]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _probe(result: Result) -> list[Batch]:
    """One row of held-out text from each source."""
    seq_len = result.config.data.seq_len
    files = [file for file in open_data(result.config).heldout if file is not None and file.tokens > 1]
    if not files:
        raise DataError(f"trial {result.name}: no held-out text to measure activations on; give corpus.holdout")
    return [batch for file in files for batch in heldout_batches(file, 0, seq_len, 1, seq_len + 1)]
