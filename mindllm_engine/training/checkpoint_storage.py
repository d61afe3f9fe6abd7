"""The tensors of a checkpoint, written and read through torch.distributed.checkpoint's planner and storage interfaces.

A checkpoint holds logical tensors of one dimension, `master/<parameter>`, `m/<parameter>` and `v/<parameter>`, each the
whole flattened parameter. A rank has parts of them, writes these to one file of its own, and on loading reads whatever
ranges of any files overlap its parts: so any number of ranks reads what any other wrote. Files are safetensors, the
index is JSON, and nothing is unpickled from a file.
"""

import io
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import xxhash
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from mindllm_engine.errors import CheckpointError
from mindllm_engine.training.checkpoint import (
    CheckpointState,
    begin,
    cannot_read,
    flush_to_disk,
    publish,
    retire,
    temporary_of,
    verify_file,
    way_out,
)

INDEX_FILE = "index.json"
# Bytes that share a checksum: what a reader of a small range reads and verifies at least.
BLOCK_BYTES = 1 << 24
SHARED = "run.dir must lie on a file system that all hosts share"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "U8": torch.uint8}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# A run of one process has no group, and that is meant.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


@dataclass(frozen=True)
class Parts:
    """What this process holds, or wants, of a logical tensor: `parts[first]` is its elements [first, first + numel)."""

    elements: int
    dtype: torch.dtype
    parts: dict[int, Tensor]


def chunk(first: int, elements: int) -> ChunkStorageMetadata:
    """Elements [first, first + elements) in DCP's terms."""
    return ChunkStorageMetadata(offsets=torch.Size([first]), sizes=torch.Size([elements]))


# Planning


class PartSavePlanner(SavePlanner):
    """Each rank writes the parts it holds. Who writes what is agreed upon in the first save and kept for the others."""

    plan: SavePlan
    metadata: Metadata
    planned = False

    def set_up_planner(
        self, state_dict: dict[str, Any], storage_meta: StorageMeta | None = None, is_coordinator: bool = False
    ) -> None:
        self.state: dict[str, Parts] = state_dict

    def create_local_plan(self) -> SavePlan:
        if self.planned:
            return SavePlan([])
        return SavePlan(
            [write_item(name, tensor, first) for name, tensor in self.state.items() for first in tensor.parts]
        )

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        if any(plan.items for plan in all_plans):
            all_plans, self.metadata = create_default_global_save_plan(all_plans)
            check_cover(self.metadata)
        return all_plans, self.metadata

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        if not self.planned:
            self.plan, self.planned = new_plan, True
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        assert write_item.index.offset is not None
        return self.state[write_item.index.fqn].parts[write_item.index.offset[0]]


def write_item(name: str, tensor: Parts, first: int) -> WriteItem:
    """One part of a logical tensor in DCP's terms."""
    data = TensorWriteData(
        chunk=chunk(first, tensor.parts[first].numel()),
        properties=TensorProperties(dtype=tensor.dtype),
        size=torch.Size([tensor.elements]),
    )
    return WriteItem(index=MetadataIndex(name, [first]), type=WriteItemType.SHARD, tensor_data=data)


def check_cover(metadata: Metadata) -> None:
    """Raises RuntimeError unless every element of every tensor is written exactly once."""
    for name, tensor in metadata.state_dict_metadata.items():
        assert isinstance(tensor, TensorStorageMetadata)
        end = 0
        for part in sorted(tensor.chunks, key=lambda part: part.offsets[0]):
            if part.offsets[0] != end:
                raise RuntimeError(f"{name}: a part begins at {part.offsets[0]} where {end} is next")
            end += part.sizes[0]
        if end != tensor.size[0]:
            raise RuntimeError(f"{name}: parts end at {end} of {tensor.size[0]} elements")


class PartLoadPlanner(LoadPlanner):
    """Each rank reads what overlaps the parts it wants; it needs no other rank to know."""

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        assert metadata is not None
        self.state: dict[str, Parts] = state_dict
        self.saved = metadata.state_dict_metadata

    def create_local_plan(self) -> LoadPlan:
        self.plan = LoadPlan([item for name, wanted in self.state.items() for item in self.reads(name, wanted)])
        return LoadPlan([])

    def reads(self, name: str, wanted: Parts) -> list[ReadItem]:
        """What to read for one tensor. Raises `CheckpointError` where the checkpoint does not hold it."""
        saved = self.saved.get(name)
        if not isinstance(saved, TensorStorageMetadata) or saved.size[0] != wanted.elements:
            found = f"{saved.size[0]}" if isinstance(saved, TensorStorageMetadata) else "nothing"
            raise CheckpointError(f"{name} should have {wanted.elements} elements, found {found}")
        return create_read_items_for_chunk_list(
            name, saved, [chunk(first, part.numel()) for first, part in wanted.parts.items()]
        )

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return self.plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise NotImplementedError("checkpoints hold tensors only")

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        assert read_item.dest_index.offset is not None
        part = self.state[read_item.dest_index.fqn].parts[read_item.dest_index.offset[0]]
        return part.narrow(0, read_item.dest_offsets[0], read_item.lengths[0])

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        pass


# Writing


def safetensors_header(
    entries: Iterable[tuple[str, torch.dtype, Sequence[int]]], **metadata: str
) -> tuple[bytes, list[int]]:
    """What a safetensors file of these (name, dtype, shape) begins with, and the byte at which each tensor begins."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    starts, end = [], 0
    for name, dtype, shape in entries:
        starts.append(end)
        end += prod(shape) * dtype.itemsize
        table[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [starts[-1], end]}
    text = orjson.dumps(table)
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, [len(header) + start for start in starts]


def shard_header(items: Sequence[WriteItem]) -> tuple[bytes, list[int]]:
    """`safetensors_header` of a rank's parts."""
    entries = []
    for item in items:
        assert item.tensor_data is not None
        first, length = item.tensor_data.chunk.offsets[0], item.tensor_data.chunk.sizes[0]
        entries.append((f"{item.index.fqn}[{first}:{first + length}]", item.tensor_data.properties.dtype, [length]))
    return safetensors_header(entries)


def shard_name(rank: int) -> str:
    """The file of a rank."""
    return f"rank_{rank:05d}.safetensors"


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return tensor.detach().view(torch.uint8).numpy().data


@dataclass
class Shard:
    """A written file.

    Attributes:
        bytes: its length.
        xxh3: of all of it.
        blocks: of every `BLOCK_BYTES` of it.
    """

    bytes: int
    xxh3: str
    blocks: list[str]


class HashedFile:
    """Writes a file, hashing on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.whole = xxhash.xxh3_64()
        self.block = xxhash.xxh3_64()
        self.blocks: list[str] = []
        self.bytes = 0

    def write(self, data: memoryview) -> None:
        """Append. Holds the interpreter's lock for no longer than a block takes to be hashed, if at all."""
        while data:
            part = data[: BLOCK_BYTES - self.bytes % BLOCK_BYTES]
            self.file.write(part)
            self.whole.update(part)
            self.block.update(part)
            self.bytes += len(part)
            if self.bytes % BLOCK_BYTES == 0:
                self.end_block()
            data = data[len(part) :]

    def end_block(self) -> None:
        """The next byte begins another block."""
        self.blocks.append(self.block.hexdigest())
        self.block.reset()

    def finish(self) -> Shard:
        """Bring what was written to the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        if self.bytes % BLOCK_BYTES:
            self.end_block()
        return Shard(self.bytes, self.whole.hexdigest(), self.blocks)


class ShardWriter(StorageWriter):
    """Writes this rank's file; on rank 0, makes the folder before, and the index and the checkpoint's name after.

    Attributes:
        checkpoint, state: what the save under way is to become.
    """

    checkpoint: Path
    state: CheckpointState

    def __init__(self, rank: int, keep: int, keep_every: int) -> None:
        self.rank = rank
        self.keep = keep
        self.keep_every = keep_every

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        if any(plan.items for plan in plans):  # in the first save, as the planner has it
            self.places = {
                item.index: (rank, byte)
                for rank, plan in enumerate(plans)
                for item, byte in zip(plan.items, shard_header(plan.items)[1], strict=True)
            }
        begin(self.checkpoint)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        name = shard_name(self.rank)
        temporary = temporary_of(self.checkpoint)
        if not temporary.is_dir():
            raise CheckpointError(f"rank {self.rank} does not see {temporary}, which rank 0 has made: {SHARED}")
        with (temporary / name).open("wb") as raw:
            file = HashedFile(raw)
            file.write(memoryview(shard_header(plan.items)[0]))
            for item in plan.items:
                data = planner.resolve_data(item)
                assert isinstance(data, Tensor)
                file.write(bytes_of(data))
            shard = file.finish()
        written: Future[list[WriteResult]] = Future()
        written.set_result([WriteResult(MetadataIndex(name), shard.bytes, shard)])
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        shards = {result.index.fqn: result.storage_data for written in results for result in written}
        temporary = temporary_of(self.checkpoint)
        for name, shard in shards.items():
            if not (temporary / name).exists() or (temporary / name).stat().st_size != shard.bytes:
                raise CheckpointError(f"rank 0 does not see {temporary / name} as it was written: {SHARED}")
        index = temporary / INDEX_FILE
        index.write_bytes(index_json(metadata, self.places, shards))
        flush_to_disk(index)
        files = {name: shard.xxh3 for name, shard in shards.items()}
        self.state.files = files | {INDEX_FILE: xxhash.xxh3_64_hexdigest(index.read_bytes())}
        publish(self.checkpoint, self.state)
        retire(self.checkpoint.parent, self.keep, self.keep_every)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False


# The index


def index_json(metadata: Metadata, places: dict[MetadataIndex, tuple[int, int]], shards: dict[str, Shard]) -> bytes:
    """index.json: a part is [first element, elements, number of the file, byte in it]."""
    tensors = {}
    for name, tensor in metadata.state_dict_metadata.items():
        assert isinstance(tensor, TensorStorageMetadata)
        parts = [[part.offsets[0], part.sizes[0], *places[MetadataIndex(name, part.offsets)]] for part in tensor.chunks]
        tensors[name] = {"dtype": DTYPE_NAMES[tensor.properties.dtype], "elements": tensor.size[0], "parts": parts}
    files = {name: {"bytes": shard.bytes, "blocks": shard.blocks} for name, shard in shards.items()}
    return orjson.dumps({"block_bytes": BLOCK_BYTES, "files": files, "tensors": tensors})


class Index:
    """index.json, checked against the state's checksum of it.

    Attributes:
        metadata: of the tensors, in DCP's terms.
        places: number of the file, and byte in it, where each part begins.

    Raises:
        CheckpointError: it is missing or damaged.
    """

    def __init__(self, checkpoint: Path, state: CheckpointState) -> None:
        path = checkpoint / INDEX_FILE
        try:
            verify_file(path, state.files[INDEX_FILE])
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {way_out(checkpoint, read_all=False)}") from error
        content = orjson.loads(path.read_bytes())
        self.block_bytes: int = content["block_bytes"]
        self.files: list[tuple[Path, int, list[str]]] = [
            (checkpoint / name, file["bytes"], file["blocks"]) for name, file in content["files"].items()
        ]
        self.places: dict[MetadataIndex, tuple[int, int]] = {}
        tensors: dict[str, Any] = {}
        for name, tensor in content["tensors"].items():
            chunks = []
            for first, elements, file, byte in tensor["parts"]:
                chunks.append(chunk(first, elements))
                self.places[MetadataIndex(name, [first])] = (file, byte)
            properties = TensorProperties(dtype=DTYPES[tensor["dtype"]])
            tensors[name] = TensorStorageMetadata(properties, torch.Size([tensor["elements"]]), chunks)
        self.metadata = Metadata(tensors)

    def places_of(self, name: str) -> list[tuple[int, int]]:
        """Number of the file, and byte in it, of each part of a tensor."""
        tensor = self.metadata.state_dict_metadata[name]
        assert isinstance(tensor, TensorStorageMetadata)
        return [self.places[MetadataIndex(name, part.offsets)] for part in tensor.chunks]

    def elements(self, name: str) -> int | None:
        """Length of a tensor; None if there is none of this name."""
        tensor = self.metadata.state_dict_metadata.get(name)
        return tensor.size[0] if isinstance(tensor, TensorStorageMetadata) else None


# Reading


class ShardReader(StorageReader):
    """Reads the blocks that hold what is wanted, each once, and compares their checksums before they are used."""

    def __init__(self, index: Index) -> None:
        self.index = index

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.index.metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        # By file and block: where in the block bytes begin, and where they are to go.
        wanted: dict[int, dict[int, list[tuple[int, Tensor]]]] = defaultdict(lambda: defaultdict(list))
        for item in plan.items:
            target = planner.resolve_tensor(item)
            file, byte = self.index.places[item.storage_index]
            byte += item.storage_offsets[0] * target.element_size()
            target = target.view(torch.uint8)
            while len(target):
                block, within = divmod(byte, self.index.block_bytes)
                length = min(len(target), self.index.block_bytes - within)
                wanted[file][block].append((within, target[:length]))
                byte, target = byte + length, target[length:]
        for file, blocks in sorted(wanted.items()):
            self.read_file(file, blocks)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def read_file(self, number: int, blocks: dict[int, list[tuple[int, Tensor]]]) -> None:
        """Fill the targets in these blocks of one file. Raises `CheckpointError` for damage."""
        path, size, checksums = self.index.files[number]
        buffer = torch.empty(min(self.index.block_bytes, size), dtype=torch.uint8)
        try:
            if path.stat().st_size != size:
                raise CheckpointError(f"{path}: damaged: {path.stat().st_size:,} bytes, not {size:,}")
            with path.open("rb") as file:
                for block, targets in sorted(blocks.items()):
                    start = block * self.index.block_bytes
                    file.seek(start)
                    data = bytes_of(buffer)[: size - start]
                    read = file.readinto(data)
                    if read != len(data) or xxhash.xxh3_64_hexdigest(data) != checksums[block]:
                        raise CheckpointError(f"{path}: damaged: bytes {start:,} to {start + len(data):,} have changed")
                    for within, target in targets:
                        target.copy_(buffer[within : within + len(target)])
        except OSError as error:
            raise cannot_read(path, error) from error

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False


def read_parts(index: Index, wanted: dict[str, Parts], group: dist.ProcessGroup | None) -> None:
    """Fill the parts, on all ranks of `group`, or on this process alone.

    Raises:
        CheckpointError: the same on all ranks, if one of them could not.
    """
    try:
        dcp.load(
            wanted,
            storage_reader=ShardReader(index),
            planner=PartLoadPlanner(),
            process_group=group,
            no_dist=group is None,
        )
    except CheckpointException as failure:
        raise first_failure(failure) from None


def read_alone(checkpoint: Path, state: CheckpointState, wanted: dict[str, Parts]) -> None:
    """Fill the parts in this process, whatever others do.

    Raises:
        CheckpointError: damage, with the way out of it.
    """
    index = Index(checkpoint, state)
    try:
        read_parts(index, wanted, None)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {way_out(checkpoint, read_all=True)}") from error


def first_failure(failure: CheckpointException) -> Exception:
    """What went wrong on the first rank on which something did: a `CheckpointError` where the user can mend it."""
    rank, (error, _) = min(failure.failures.items())
    if isinstance(error, CheckpointError):
        return error
    if isinstance(error, OSError):
        where = f"rank {rank}: {error.filename}: " if error.filename else f"rank {rank}: "
        return CheckpointError(f"{where}{error.strerror}")
    return RuntimeError(str(failure))
