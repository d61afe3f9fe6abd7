"""Checkpoints: what a run needs to go on, in `<run>/checkpoints/step_00000100/`, keyed by parameter name.

    model.safetensors       fp32 master weights, however the run keeps them (`optim.master`)
    optimizer.safetensors   first and second moments, `m/<name>` and `v/<name>`, fp32
    state.json              step, plan, model configuration, and an xxh3 of each file

A checkpoint is written beside its place and renamed into it, so that a reader never sees half of one and a full disk
leaves the earlier ones as they were.
"""

import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import safetensors
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from mindllm_engine.data.atomic_files import file_hash
from mindllm_engine.distributed.backend import Backend
from mindllm_engine.distributed.process_group import all_reduce_sum
from mindllm_engine.errors import CheckpointError
from mindllm_engine.models import ModelConfig

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"


@dataclass
class CheckpointState:
    """What state.json holds.

    Attributes:
        step: optimizer steps done.
        next_sample: number of the first global sample not yet consumed.
        model: the model's configuration as a dictionary.
        plan: `Plan.state()`.
        tokenizer_hash: of the tokenizer that the data was made with.
        files: xxh3 of the tensor files, by name.
    """

    step: int
    next_sample: int
    model: dict[str, Any]
    plan: dict[str, Any]
    tokenizer_hash: str
    files: dict[str, str]


def gather_state(backend: Backend) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The whole optimizer state on every rank."""
    pieces, state = backend.pieces(), backend.read_state()
    whole: dict[tuple[str, str], Tensor] = {}
    for kind, tensors in state.items():
        for piece, tensor in zip(pieces, tensors, strict=True):
            flat = whole.setdefault((kind, piece.name), torch.zeros(piece.shape))
            if backend.saves_state:
                flat.view(-1)[piece.first : piece.stop] = tensor
    names: list[Any] = [None] * (dist.get_world_size() if dist.is_initialized() else 1)
    shapes = {piece.name: piece.shape for piece in pieces}
    if dist.is_initialized():
        dist.all_gather_object(names, shapes)
    else:
        names = [shapes]
    for name, shape in sorted({k: v for part in names for k, v in part.items()}.items()):
        for kind in state:
            all_reduce_sum(whole.setdefault((kind, name), torch.zeros(shape)))
    return (
        {name: x for (kind, name), x in whole.items() if kind == "master"},
        {f"{kind}/{name}": x for (kind, name), x in whole.items() if kind != "master"},
    )


def save_checkpoint(
    folder: Path, state: CheckpointState, weights: dict[str, Tensor], moments: dict[str, Tensor], keep: int
) -> Path:
    """Write `folder`/step_<step> and delete all but the newest `keep` checkpoints (0 keeps all).

    Raises:
        CheckpointError: it could not be written (a full disk); nothing of it is left, and earlier checkpoints are
        whole.
    """
    final = folder / f"step_{state.step:08d}"
    temporary = folder / f".{final.name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".step_*.tmp"):  # of a process that was killed while saving
            shutil.rmtree(leftover)
        temporary.mkdir()
        for name, tensors in ((MODEL_FILE, weights.items()), (OPTIMIZER_FILE, moments.items())):
            safetensors.torch.save_file({key: tensor.cpu().contiguous() for key, tensor in tensors}, temporary / name)
            state.files[name] = file_hash(temporary / name)
        (temporary / STATE_FILE).write_bytes(orjson.dumps(asdict(state), option=orjson.OPT_INDENT_2))
        for path in (*temporary.iterdir(), temporary):
            flush_to_disk(path)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        flush_to_disk(folder)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"{final}: cannot save the checkpoint ({error}); free space and run the same command again to go on from "
            f"{newest_checkpoint(folder) or 'the beginning'}"
        ) from error
    if keep > 0:
        for old in checkpoints(folder)[:-keep]:
            doomed = folder / f".{old.name}.tmp"  # so that a kill leaves no half of it under its name
            old.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    found = [path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{8,}", path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name gives."""
    return int(checkpoint.name.removeprefix("step_"))


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the highest step, or None."""
    found = checkpoints(folder)
    return found[-1] if found else None


def load_state(checkpoint: Path) -> CheckpointState:
    """state.json of a checkpoint.

    Raises:
        CheckpointError: it is missing or not what this engine writes.
    """
    path = checkpoint / STATE_FILE
    try:
        state = CheckpointState(**orjson.loads(path.read_bytes()))
        types = {"step": int, "next_sample": int, "model": dict, "plan": dict, "tokenizer_hash": str, "files": dict}
        if not all(isinstance(getattr(state, name), kind) for name, kind in types.items()):
            raise TypeError("a value of another type")
        if not {"seed", "sources", "blocks"} <= state.plan.keys() or state.next_sample < 0:
            raise TypeError("an incomplete plan")
        if re.fullmatch(r"step_\d+", checkpoint.name) and state.step != step_of(checkpoint):
            raise TypeError(f"it says step {state.step}")
    except (OSError, TypeError, orjson.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path}: not a checkpoint of this engine, or a damaged one ({error}); "
            f"delete {checkpoint} to use an earlier one"
        ) from error
    return state


def load_checkpoint(checkpoint: Path, model: ModelConfig, backend: Backend) -> CheckpointState:
    """Fill the optimizer's master weights and moments, and the parameters they stand for.

    Raises:
        CheckpointError: another model's checkpoint, or a damaged one; nothing has been changed then.
    """
    state = load_state(checkpoint)
    difference = first_difference(state.model, asdict(model), "model")
    if difference:
        raise CheckpointError(f"{checkpoint}: the checkpoint is of another model: {difference}; choose another run.dir")
    pieces = backend.pieces()
    like = {piece.name: torch.empty(piece.shape, device="meta") for piece in pieces}
    weights = read_tensors(checkpoint, MODEL_FILE, state, like)
    moments = read_tensors(
        checkpoint, OPTIMIZER_FILE, state, {f"{kind}/{name}": x for kind in "mv" for name, x in like.items()}
    )

    def parts(tensors: dict[str, Tensor], prefix: str) -> list[Tensor]:
        return [tensors[prefix + piece.name].flatten()[piece.first : piece.stop] for piece in pieces]

    backend.write_state(
        {"master": parts(weights, ""), "m": parts(moments, "m/"), "v": parts(moments, "v/")}, state.step
    )
    return state


def read_tensors(checkpoint: Path, file: str, state: CheckpointState, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one file, after its hash, names and shapes have been checked against `like`."""
    path = checkpoint / file
    try:
        if file_hash(path) != state.files.get(file):
            raise CheckpointError(
                f"{path}: damaged: its xxh3 is not the one in {STATE_FILE}; delete {checkpoint} to use an earlier one"
            )
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); delete {checkpoint} to use an earlier one") from error
    for name, tensor in like.items():
        if name not in tensors or tensors[name].shape != tensor.shape:
            found = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise CheckpointError(f"{path}: {name} should be {tuple(tensor.shape)}, found {found}")
    return tensors


def first_difference(saved: Any, wanted: Any, key: str) -> str | None:
    """The first key, depth first, at which two configurations differ, with both values."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        for name in dict.fromkeys([*saved, *wanted]):
            difference = first_difference(saved.get(name), wanted.get(name), f"{key}.{name}")
            if difference:
                return difference
        return None
    if saved != wanted:
        return f"{key} was {saved} and is {wanted}" if not isinstance(saved or wanted, dict) else f"{key} differs"
    return None


def flush_to_disk(path: Path) -> None:
    """fsync a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
