"""Log-probabilities of answers under the reference network of DPO, computed once and kept in a file.

    <tuning.dir>/reference-<fingerprint>.npz    keys, uint64 (n,), sorted; log_probs, fp64 (n,)

A sequence is found by its key, a hash of its tokens and of what is learnt of them, wherever it lies: so neither the
order of the data nor the number of ranks matters. The fingerprint stands for the reference checkpoint, the precision,
and the token files, which the template went into. The reference is in memory only while the file is made.
"""

import gc
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import orjson
import torch
import torch.distributed as dist
import xxhash

from mindllm_engine.data.atomic_files import write_atomically
from mindllm_engine.data.loss_mask import NEW_SEQUENCE, SUPERVISED
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.distributed import watchdog
from mindllm_engine.distributed.process_group import World, raise_together, value_of_rank_0
from mindllm_engine.errors import DataError, MindLLMError
from mindllm_engine.training.checkpoint import identity
from mindllm_engine.training.scoring import token_losses
from mindllm_engine.training.weights import load_model


@dataclass(frozen=True, eq=False)
class ReferenceScores:
    """The log-probability in nats of what is learnt of each sequence, by its key."""

    keys: npt.NDArray[np.uint64]
    log_probs: npt.NDArray[np.float64]

    def find(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
        """Those of these sequences. Raises DataError where one is unknown."""
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        if not np.array_equal(self.keys[places], keys):
            raise DataError("an answer has no reference log-probability; delete tuning.dir's reference files")
        return self.log_probs[places]


def sequence_key(ids: npt.NDArray[np.integer], learnt: npt.NDArray[np.bool_]) -> int:
    """The key of a sequence of n tokens: of its tokens but the last, (n - 1,), and of which of the tokens after each is
    learnt, (n - 1,). The last token, the end, may be a sample's last target, and no input."""
    digest = xxhash.xxh3_64(ids.astype(np.int32).tobytes())
    digest.update(learnt.astype(np.bool_).tobytes())
    return digest.intdigest()


def reference_scores(
    files: list[TokenFile], checkpoint: Path, dtype: torch.dtype, folder: Path, world: World
) -> ReferenceScores:
    """The scores of all pairs in these files under `checkpoint`, from `folder`'s file, or computed by all ranks.

    Raises:
        DataError, CheckpointError: on all ranks, if one of them cannot read or write.
    """
    facts = [identity(checkpoint), str(dtype), *(file.manifest.content for file in files)]
    path = folder / f"reference-{xxhash.xxh3_64_hexdigest(orjson.dumps(facts))}.npz"
    if not value_of_rank_0(path.exists()):
        failure: MindLLMError | None = None
        ours: dict[int, float] = {}
        try:
            ours = score_share(files, checkpoint, dtype, world)
        except MindLLMError as error:
            failure = error
        raise_together(failure, f"another rank cannot compute {path}")
        shares = [ours] * world.world_size
        if dist.is_initialized():
            dist.all_gather_object(shares, ours)
        try:
            if world.is_first:
                write_scores(path, shares)
        except DataError as error:
            failure = error
        raise_together(failure, f"rank 0 cannot write {path}")
    return read_scores(path)


def score_share(files: list[TokenFile], checkpoint: Path, dtype: torch.dtype, world: World) -> dict[int, float]:
    """Log-probabilities by key of every `world_size`-th sequence."""
    share = [
        sequence
        for number, sequence in enumerate(sequence for file in files for sequence in sequences_of(file))
        if number % world.world_size == world.rank
    ]
    model = load_model(checkpoint, world.device)[0].to(dtype)
    found: dict[int, float] = {}
    for number, losses in token_losses(model, [ids for ids, _ in share]):
        watchdog.mark("reference log-probabilities")
        ids, learnt = share[number]
        found[sequence_key(ids[:-1], learnt[1:])] = -float(losses[learnt[1:]].sum(dtype=np.float64))
    del model
    gc.collect()  # a network of modules that know each other goes only then
    return found


def sequences_of(file: TokenFile) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]]:
    """The ids (n,) and what is learnt of them (n,) of each answer in a file of pairs, in order."""
    mask = file.mask
    assert mask is not None
    lengths = file.lengths
    for start, length in zip(np.cumsum(lengths) - lengths, lengths, strict=True):
        ids = np.empty(length, np.int32)
        file.gather(np.array([start]), np.array([length]), ids)
        flags = mask[start : start + length]
        borders = np.flatnonzero(flags & NEW_SEQUENCE)
        for part, of_mask in zip(np.split(ids, borders), np.split(flags, borders), strict=True):
            yield part, (of_mask & SUPERVISED).astype(np.bool_)


def write_scores(path: Path, shares: list[dict[int, float]]) -> None:
    """Write the scores of all ranks. Raises DataError."""
    scores = {key: value for share in shares for key, value in share.items()}
    keys = np.array(sorted(scores), np.uint64)
    content = io.BytesIO()
    np.savez(content, keys=keys, log_probs=np.array([scores[int(key)] for key in keys]))
    write_atomically(path, content.getvalue())


def read_scores(path: Path) -> ReferenceScores:
    """Raises DataError if the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return ReferenceScores(content["keys"], content["log_probs"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it to compute it again") from error
