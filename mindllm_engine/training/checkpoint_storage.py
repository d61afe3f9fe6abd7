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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import xxhash
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
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
from mindllm_engine.training.safetensors_file import DTYPE_NAMES, DTYPES, HashedFile, bytes_of, safetensors_header

INDEX_FILE = "index.json"
# Bytes that share a checksum: what a reader of a small range reads and verifies at least.
BLOCK_BYTES = 1 << 24
SHARED = "run.dir must lie on a file system that all hosts share"

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


@dataclass(frozen=True)
class Held:
    """What one rank holds of a logical tensor, without the numbers: `ranges` are (first element, elements)."""

    name: str
    dtype: str
    elements: int
    ranges: list[tuple[int, int]]


class PartSavePlanner(SavePlanner):
    """Each rank writes the parts it holds. Rank 0 learns in the first save who holds what, for its index: that stays.

    What travels is `Held`, since the plans' items in DCP's terms take 50 us each to unpickle, 11 s for 512 ranks.
    """

    plan: SavePlan | None = None

    def set_up_planner(
        self, state_dict: dict[str, Any], storage_meta: StorageMeta | None = None, is_coordinator: bool = False
    ) -> None:
        self.state: dict[str, Parts] = state_dict

    def create_local_plan(self) -> SavePlan:
        return SavePlan([], planner_data=None if self.plan else held(self.state))

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        if all_plans[0].planner_data is not None:
            check_cover([plan.planner_data for plan in all_plans])
        return all_plans, Metadata({})

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        if self.plan is None:
            items = [write_item(name, tensor, first) for name, tensor in self.state.items() for first in tensor.parts]
            self.plan = replace(new_plan, items=items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        assert write_item.index.offset is not None
        return self.state[write_item.index.fqn].parts[write_item.index.offset[0]]


def held(state: dict[str, Parts]) -> list[Held]:
    """What these parts are."""
    return [
        Held(name, DTYPE_NAMES[x.dtype], x.elements, [(first, len(part)) for first, part in x.parts.items()])
        for name, x in state.items()
    ]


def write_item(name: str, tensor: Parts, first: int) -> WriteItem:
    """One part of a logical tensor in DCP's terms."""
    data = TensorWriteData(
        chunk=chunk(first, tensor.parts[first].numel()),
        properties=TensorProperties(dtype=tensor.dtype),
        size=torch.Size([tensor.elements]),
    )
    return WriteItem(index=MetadataIndex(name, [first]), type=WriteItemType.SHARD, tensor_data=data)


def check_cover(ranks: list[list[Held]]) -> None:
    """Raises RuntimeError unless every element of every tensor is written exactly once."""
    tensors: dict[str, tuple[int, list[tuple[int, int]]]] = {}
    for tensor in (tensor for rank in ranks for tensor in rank):
        tensors.setdefault(tensor.name, (tensor.elements, []))[1].extend(tensor.ranges)
    for name, (elements, ranges) in tensors.items():
        end = 0
        for first, length in sorted(ranges):
            if first != end:
                raise RuntimeError(f"{name}: a part begins at {first} where {end} is next")
            end += length
        if end != elements:
            raise RuntimeError(f"{name}: parts end at {end} of {elements} elements")


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


def shard_header(tensors: list[Held]) -> tuple[bytes, list[int]]:
    """`safetensors_header` of a rank's parts."""
    return safetensors_header(
        (f"{tensor.name}[{first}:{first + length}]", DTYPES[tensor.dtype], [length])
        for tensor in tensors
        for first, length in tensor.ranges
    )


def shard_name(rank: int) -> str:
    """The file of a rank."""
    return f"rank_{rank:05d}.safetensors"


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
        if plans[0].planner_data is not None:  # in the first save, as the planner has it
            self.tensors = tensors_json([plan.planner_data for plan in plans])
        begin(self.checkpoint)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        name = shard_name(self.rank)
        temporary = temporary_of(self.checkpoint)
        if not temporary.is_dir():
            raise CheckpointError(f"rank {self.rank} does not see {temporary}, which rank 0 has made: {SHARED}")
        with (temporary / name).open("wb") as raw:
            file = HashedFile(raw, BLOCK_BYTES)
            file.write(memoryview(shard_header(plan.planner_data)[0]))
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
        table = {name: {"bytes": shard.bytes, "blocks": shard.blocks} for name, shard in shards.items()}
        index.write_bytes(
            orjson.dumps({"block_bytes": BLOCK_BYTES, "files": table, "tensors": orjson.Fragment(self.tensors)})
        )
        flush_to_disk(index)
        files = {name: shard.xxh3 for name, shard in shards.items()}
        self.state.files = files | {INDEX_FILE: xxhash.xxh3_64_hexdigest(index.read_bytes())}
        publish(self.checkpoint, self.state)
        retire(self.checkpoint.parent, self.keep, self.keep_every)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False


# The index


def tensors_json(ranks: list[list[Held]]) -> bytes:
    """What index.json says of tensors: a part is [first element, elements, number of the file, byte in it]."""
    tensors: dict[str, Any] = {}
    for rank, parts in enumerate(ranks):
        starts = iter(shard_header(parts)[1])
        for part in parts:
            tensor = tensors.setdefault(part.name, {"dtype": part.dtype, "elements": part.elements, "parts": []})
            tensor["parts"] += [[first, length, rank, next(starts)] for first, length in part.ranges]
    return orjson.dumps(tensors)


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
