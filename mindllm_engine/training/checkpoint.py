"""Checkpoints as folders: what a run needs to go on, in `<run>/checkpoints/step_00000100/`.

    rank_00000.safetensors ...   what each rank held: fp32 parts `master/<parameter>[first:stop]`, `m/...` and `v/...`
                                 of the flattened parameters, and its random generators
    index.json                   which part lies in which file at which byte, and an xxh3 of every 16 MiB of the files
    state.json                   step, plan, model, versions; an xxh3 of each file above, and of itself

A checkpoint is written beside its place and renamed into it, so that a reader never sees half of one and a full disk
leaves the earlier ones as they were. `checkpoint_storage.py` writes and reads the tensors, and `checkpointer.py` calls
both.
"""

import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import torch
import xxhash

from mindllm_engine import __version__
from mindllm_engine.data.atomic_files import file_hash
from mindllm_engine.errors import CheckpointError

STATE_FILE = "state.json"
FORMAT = 2


@dataclass
class CheckpointState:
    """What state.json holds. The loop fills in the first part, `Checkpointer.save` the rest.

    Attributes:
        step: optimizer steps done.
        next_sample: number of the first global sample not yet consumed.
        model: the model's configuration as a dictionary.
        plan: `Plan.state()`.
        tokenizer_hash: of the tokenizer that the data was made with.
        extra: named lists of numbers that come back as the same fp64 bits, NaN and infinities included.
        adapters: of checkpoints that leave frozen weights out (`Stage.adapters`); else empty.
        updates: of the optimizer (`Backend.updates`).
        world_size: ranks that wrote it.
        torch, engine: versions that wrote it.
        files: xxh3 of the other files, by name.
        format: of the files; another one is refused.
    """

    step: int
    next_sample: int
    model: dict[str, Any]
    plan: dict[str, Any]
    tokenizer_hash: str
    extra: dict[str, list[float]] = field(default_factory=dict)
    adapters: dict[str, Any] = field(default_factory=dict)
    updates: int = 0
    world_size: int = 1
    torch: str = torch.__version__
    engine: str = __version__
    files: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT


# Folders


def checkpoint_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step_{step:08d}"


def temporary_of(checkpoint: Path) -> Path:
    """Where a checkpoint lies while it is written or deleted."""
    return checkpoint.with_name(f".{checkpoint.name}.tmp")


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


# Writing


def begin(checkpoint: Path) -> None:
    """Make the folder in which `checkpoint` is to be written, and remove what killed processes have left."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(checkpoint.parent)
    temporary_of(checkpoint).mkdir()


def remove_leftovers(folder: Path) -> None:
    """Remove what processes have left that were killed while they wrote or deleted a checkpoint."""
    for leftover in folder.glob(".step_*.tmp"):
        shutil.rmtree(leftover)


def publish(checkpoint: Path, state: CheckpointState) -> None:
    """Give a checkpoint, whose other files have reached the disk, its state.json and its name."""
    temporary = temporary_of(checkpoint)
    (temporary / STATE_FILE).write_bytes(sealed(asdict(state)))
    flush_to_disk(temporary / STATE_FILE)
    flush_to_disk(temporary)
    if checkpoint.exists():  # of this step already: it gives way at once, and as a whole
        checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.old.tmp"))
    temporary.rename(checkpoint)
    flush_to_disk(checkpoint.parent)


def retire(folder: Path, keep: int, keep_every: int) -> None:
    """Delete all but the newest `keep` checkpoints (0 keeps all) and those of every `keep_every`-th step (0: none)."""
    for old in checkpoints(folder)[:-keep] if keep > 0 else []:
        if keep_every > 0 and step_of(old) % keep_every == 0:
            continue
        doomed = temporary_of(old)  # so that a kill leaves no half of it under its name
        old.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    for aside in folder.glob(".step_*.old.tmp"):
        shutil.rmtree(aside, ignore_errors=True)


def sealed(fields: dict[str, Any]) -> bytes:
    """state.json of these fields, whose last key is an xxh3 of the others."""
    fields = {name: value for name, value in fields.items() if name != "xxh3"}
    # JSON has no NaN or infinity: they stand as text there, which `float` reads like any number.
    fields["extra"] = {
        name: [number if abs(number) < float("inf") else str(number) for number in map(float, numbers)]
        for name, numbers in fields.get("extra", {}).items()
    }
    digest = xxhash.xxh3_64_hexdigest(orjson.dumps(fields))
    return orjson.dumps({**fields, "xxh3": digest}, option=orjson.OPT_INDENT_2)


def flush_to_disk(path: Path) -> None:
    """fsync a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Reading


def load_state(checkpoint: Path) -> CheckpointState:
    """state.json of a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, or not what this release writes.
    """
    try:
        return _read_state(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {way_out(checkpoint, read_all=False)}") from error


def _read_state(checkpoint: Path) -> CheckpointState:
    path = checkpoint / STATE_FILE
    try:
        fields = orjson.loads(path.read_bytes())
        version = fields.get("format", 1)
        if version != FORMAT:
            raise CheckpointError(
                f"{path}: has format {version}, and this release reads {FORMAT} only: use the release that wrote "
                "it, or choose another run.dir"
            )
        # What is as it was written has all the keys, with values of their types.
        if orjson.loads(sealed(fields))["xxh3"] != fields.pop("xxh3", None):
            raise ValueError("its xxh3 is another")
        fields["extra"] = {name: [float(number) for number in numbers] for name, numbers in fields["extra"].items()}
        state = CheckpointState(**fields)
        if re.fullmatch(r"step_\d+", checkpoint.name) and state.step != step_of(checkpoint):
            raise ValueError(f"it says step {state.step}")
    except (OSError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of this engine, or a damaged one ({error})") from error
    return state


def identity(checkpoint: Path) -> str:
    """What a checkpoint is known by wherever it lies, 16 hexadecimal digits: state.json has the hashes of all else.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return file_hash(checkpoint / STATE_FILE)
    except OSError as error:
        raise cannot_read(checkpoint / STATE_FILE, error) from error


def verify(checkpoint: Path) -> None:
    """Read all of a checkpoint and compare it with its checksums.

    Raises:
        CheckpointError: naming the first file that is missing, truncated or altered.
    """
    for name, expected in _read_state(checkpoint).files.items():
        verify_file(checkpoint / name, expected)


def verify_file(path: Path, expected: str) -> None:
    """Raises `CheckpointError` unless the file's xxh3 is the expected one."""
    try:
        actual = file_hash(path)
    except OSError as error:
        raise cannot_read(path, error) from error
    if actual != expected:
        raise CheckpointError(f"{path}: damaged: its xxh3 is not the one in {STATE_FILE}")


def cannot_read(path: Path, error: OSError) -> CheckpointError:
    """What the system said when a file of a checkpoint was read, as the user's error."""
    missing = isinstance(error, FileNotFoundError)
    return CheckpointError(f"{path}: missing" if missing else f"{path}: cannot be read ({error.strerror})")


def way_out(checkpoint: Path, read_all: bool) -> str:
    """What a user can do about a damaged checkpoint: which earlier one is whole.

    With `read_all` that one has been read and compared with its checksums; else its files are there.
    """
    for earlier in reversed([path for path in checkpoints(checkpoint.parent) if path.name < checkpoint.name]):
        try:
            files = _read_state(earlier).files
            if read_all:
                verify(earlier)
            if all((earlier / name).exists() for name in files):
                return f"delete {checkpoint} to go on from {earlier.name}"
        except CheckpointError:
            continue
    return "there is no earlier one that is whole; restore the file, or start anew in another run.dir"


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
