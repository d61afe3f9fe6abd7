"""The weight files of a Transformers folder: safetensors, in shards where they are large; pickles of tensors are read.

model.safetensors                                    or, above `SHARD_BYTES`,
model-00001-of-00003.safetensors ..., model.safetensors.index.json (which tensor lies in which file)
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mindllm_engine.errors import CheckpointError
from mindllm_engine.training.safetensors_file import bytes_of, safetensors_header

# What Transformers itself cuts at.
SHARD_BYTES = 5_000_000_000

_SAFETENSORS, _PICKLE = "model.safetensors", "pytorch_model.bin"


def write_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    show: Callable[[int], None],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write tensors to `folder`, rounded to `dtype`, one at a time.

    Args:
        show: called with the bytes written so far.
        shard_bytes: a file holds no more, unless a single tensor is larger.

    Raises:
        OSError: they cannot be written.
    """
    shards = list(_shards(tensors, dtype, shard_bytes))
    file_of: dict[str, str] = {}
    written = 0
    for number, names in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else _SAFETENSORS
        file_of |= dict.fromkeys(names, name)
        header, _ = safetensors_header([(key, dtype, tensors[key].shape) for key in names])
        with (folder / name).open("wb") as file:
            file.write(header)
            for key in names:
                content = bytes_of(tensors[key].detach().to("cpu", dtype).contiguous())
                file.write(content)
                written += content.nbytes
                show(written)
    if len(shards) > 1:
        index = {"metadata": {"total_size": written}, "weight_map": file_of}
        (folder / f"{_SAFETENSORS}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: Mapping[str, Tensor], dtype: torch.dtype, shard_bytes: int) -> Iterator[list[str]]:
    """Names of tensors that lie in one file, in the order of the alphabet."""
    names: list[str] = []
    size = 0
    for name, tensor in sorted(tensors.items()):
        bytes = tensor.numel() * dtype.itemsize
        if names and size + bytes > shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += bytes
    yield names


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, from safetensors or, where there are none, from pickles, whole or in shards.

    Raises:
        CheckpointError: there are none, or a file is missing or damaged.
    """
    for name in (_SAFETENSORS, _PICKLE):
        index = folder / f"{name}.index.json"
        if (folder / name).exists():
            return _read_file(folder / name)
        if index.exists():
            files = sorted(set(read_json(index).get("weight_map", {}).values()))
            if any(Path(file).name != file for file in files):
                raise CheckpointError(f"{index} names a file outside of its folder")
            return {key: tensor for file in files for key, tensor in _read_file(folder / file).items()}
    raise CheckpointError(f"{folder} has neither {_SAFETENSORS} nor {_PICKLE}, whole or in shards")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a Transformers folder. Raises CheckpointError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}: it is no checkpoint of transformers") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold an object")
    return content


def _read_file(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # weights_only: a pickle could otherwise run any code.
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing, which the index beside it names") from error
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} is damaged or cannot be read: {' '.join(str(error).split())[:200]}") from error
    except Exception as error:  # pickle raises its own kinds for what weights_only refuses
        raise CheckpointError(f"{path} holds more than tensors, or is damaged") from error
