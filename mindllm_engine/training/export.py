"""Weights alone, without the optimizer: one safetensors file with the parameters of a checkpoint in their shapes."""

import contextlib
import os
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import orjson
import torch
from torch import nn

from mindllm_engine.errors import CheckpointError
from mindllm_engine.training.checkpoint import CheckpointState, load_state, way_out
from mindllm_engine.training.checkpoint_storage import Index, Parts, read_parts
from mindllm_engine.training.safetensors_file import bytes_of, safetensors_header
from mindllm_engine.training.weights import find_checkpoint, model_config

# Elements read at a time: neighbours in the files share blocks, which are read whole.
BATCH_ELEMENTS = 1 << 26


def shapes_of(state: CheckpointState) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter by name; a tied one stands once."""
    network: nn.Module = model_config(state.model).build(device=torch.device("meta"), dtype=torch.float32, seed=0)
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}


def whole_state(checkpoint: Path) -> CheckpointState:
    """`load_state` of a checkpoint that holds all weights. Raises CheckpointError for one that leaves some out."""
    state = load_state(checkpoint)
    if state.adapters:
        run = checkpoint.parent.parent
        raise CheckpointError(
            f"{checkpoint}: holds LoRA's additions alone; make {run / 'merged'} by tools/merge_lora.py --run {run} "
            "where it is not there yet, and give that"
        )
    return state


def exported_bytes(source: Path, dtype: torch.dtype) -> int:
    """Bytes of the weights of a run folder or checkpoint in `dtype`; of LoRA's, those of the whole network."""
    shapes = shapes_of(load_state(find_checkpoint(source)))
    return sum(prod(shape) for shape in shapes.values()) * dtype.itemsize


def export_weights(source: Path, out: Path, dtype: torch.dtype, show: Callable[[int], None]) -> Path:
    """Write the fp32 master weights of a run folder or checkpoint to `out`, rounded to `dtype`.

    The file's metadata hold the network's configuration (`config`, JSON), `step` and `checkpoint`.

    Args:
        show: called with the bytes of weights written so far.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: there is none, it is damaged, or `out` cannot be written, which then is as it was before.
    """
    checkpoint = find_checkpoint(source)
    state = whole_state(checkpoint)
    index = Index(checkpoint, state)
    shapes = shapes_of(state)
    names = sorted(shapes, key=lambda name: min(index.places_of(f"master/{name}")))
    header, _ = safetensors_header(
        [(name, dtype, shapes[name]) for name in names],
        config=orjson.dumps(state.model).decode(),
        step=str(state.step),
        checkpoint=checkpoint.name,
    )
    staged = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with staged.open("wb") as file:
            file.write(header)
            for batch in batches(names, shapes):
                tensors = {name: torch.empty(prod(shapes[name])) for name in batch}
                read_parts(
                    index, {f"master/{name}": Parts(len(x), x.dtype, {0: x}) for name, x in tensors.items()}, None
                )
                for tensor in tensors.values():
                    file.write(bytes_of(tensor.to(dtype)))
                show(file.tell() - len(header))
            file.flush()
            os.fsync(file.fileno())
        staged.replace(out)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {way_out(checkpoint, read_all=True)}") from error
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written ({error.strerror}); free space, or write elsewhere") from error
    finally:
        with contextlib.suppress(OSError):
            staged.unlink()
    return checkpoint


def batches(names: list[str], shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Neighbouring parameters of up to `BATCH_ELEMENTS` together; a larger one alone."""
    batch: list[str] = []
    for name in names:
        if batch and sum(prod(shapes[other]) for other in [*batch, name]) > BATCH_ELEMENTS:
            yield batch
            batch = []
        batch.append(name)
    yield batch
