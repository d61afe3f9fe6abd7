"""What of a token file is learnt: `<prefix>.mask`, a byte for each token of `<prefix>.bin`.

Bit 0 (`SUPERVISED`): the token is predicted. Bit 1 (`NEW_SEQUENCE`): a new sequence begins at the token, a border
inside a document, across which nothing is attended to or predicted; so two answers to one prompt can lie in one
document. The manifest carries the file's xxh3; a token file whose manifest has none has no mask: all of it is learnt.
"""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from mindllm_engine.data.file_errors import reading, writing
from mindllm_engine.data.manifest import Manifest, with_suffix
from mindllm_engine.errors import DataError

SUPERVISED = 1
NEW_SEQUENCE = 2

SUFFIX = ".mask"


class MaskWriter:
    """Writes the mask of a token file that is being written, under another name until `complete`."""

    def __init__(self, prefix: Path) -> None:
        self._path = with_suffix(prefix, SUFFIX)
        self._staged = with_suffix(prefix, f"{SUFFIX}.tmp")
        self._hasher = xxhash.xxh3_64()
        with writing(self._path):
            self._file = self._staged.open("wb")

    def append(self, mask: npt.NDArray[np.uint8]) -> None:
        """Append the bytes of some tokens, (tokens,). Raises DataError for a full disk."""
        self._hasher.update(mask.data)
        with writing(self._path):
            self._file.write(mask.data)

    def complete(self) -> str:
        """Give the file its name and return its xxh3."""
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._staged.replace(self._path)
        return self._hasher.hexdigest()

    def abort(self) -> None:
        """Delete what was written."""
        self._file.close()
        self._staged.unlink(missing_ok=True)


def check_size(prefix: str | Path, manifest: Manifest) -> None:
    """Raise DataError if a mask that the manifest speaks of is missing, or of another length than the tokens."""
    if manifest.mask:
        path = with_suffix(prefix, SUFFIX)
        with reading(path):
            size = path.stat().st_size
        if size != manifest.tokens:
            raise DataError(
                f"{path}: has {size} bytes for {manifest.tokens} tokens; restore the file from a copy or rebuild it"
            )


def open_mask(prefix: str | Path, manifest: Manifest) -> npt.NDArray[np.uint8] | None:
    """The mask of a token file, uint8[tokens], a view of its bytes on the disk; None where it has none.

    Raises:
        DataError: it is missing, or not what the manifest says. All of it is read to find that out.
    """
    if not manifest.mask:
        return None
    check_size(prefix, manifest)
    path = with_suffix(prefix, SUFFIX)
    with reading(path):
        mask = np.memmap(path, np.uint8, "r") if manifest.tokens else np.empty(0, np.uint8)
    found = xxhash.xxh3_64_hexdigest(mask.data)
    if found != manifest.mask:
        raise DataError(
            f"{path}: damaged: its checksum is {found}, the manifest says {manifest.mask}; restore the file from a "
            "copy or rebuild it"
        )
    return mask


def learnt_targets(
    mask: npt.NDArray[np.uint8], stretches: npt.NDArray[np.int64], seq_len: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """What a file's mask says of one sample.

    Args:
        mask: of the whole file, uint8[tokens].
        stretches: of the sample, int64[stretches, 4]: document, place in it, place in the file, tokens; seq_len + 1
            tokens in all at most.

    Returns:
        bool[seq_len], whether the target of each place is learnt; and the places, in 1..seq_len, of tokens at which a
        new sequence begins inside a document.
    """
    flags = np.concatenate([mask[start : start + count] for _, _, start, count in stretches.tolist()])
    learnt = np.zeros(seq_len, np.bool_)
    learnt[: len(flags) - 1] = flags[1:] & SUPERVISED
    borders = 1 + np.flatnonzero(flags[1:] & NEW_SEQUENCE)
    learnt[borders - 1] = False
    return learnt, borders
