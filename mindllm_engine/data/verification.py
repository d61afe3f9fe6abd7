"""Checks any number of token files and goes on after a damaged one (tools/verify_data.py).

Each file is read once: manifest, index, the checksum of every chunk, and whether every id is inside the vocabulary that
the manifest names. What is checked within one file is data/token_files.py's.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mindllm_engine.data.file_errors import reading
from mindllm_engine.data.manifest import Manifest, with_suffix
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import DataError

DAMAGES_LISTED = 20
"""Of one file: a disk that fails may spoil a hundred thousand chunks."""


@dataclass(frozen=True)
class Verified:
    """What was found of one token file.

    Attributes:
        prefix: the path without .bin, .idx and .json.
        manifest: None where there is none, or it cannot be read.
        damages: one line each, at most `DAMAGES_LISTED` and one that counts the others; empty for a sound file.
    """

    prefix: Path
    manifest: Manifest | None
    damages: list[DataError]


def find_token_files(sources: list[str]) -> list[Path]:
    """The prefixes of token files: of each source that is a folder all that lie in it, in order of their names; any
    other source is a prefix itself, with or without .bin, .idx or .json.

    Raises:
        DataError: nothing was named, a folder holds no token file or cannot be read, or there is nothing at a prefix.
    """
    prefixes: list[Path] = []
    for source in sources:
        with reading(Path(source)):
            prefixes += _token_files_of(source)
    if not prefixes:
        raise DataError("no sources to verify; give prefixes of token files, or folders that hold some")
    return list(dict.fromkeys(prefixes))


def _token_files_of(source: str) -> list[Path]:
    """Those of one source, see `find_token_files`; what the system refuses is an OSError."""
    path = Path(source)
    if path.is_dir():
        # A .json alone may be anything; a .bin or .idx without its manifest is a damaged token file.
        found = sorted({file.with_suffix("") for file in path.iterdir() if file.suffix in (".bin", ".idx")})
        if not found:
            raise DataError(f"{source}: the folder holds no token files (.bin, .idx); give the one that does")
        return found
    prefix = path.with_suffix("") if path.suffix in (".bin", ".idx", ".json") else path
    if not any(with_suffix(prefix, suffix).exists() for suffix in (".bin", ".idx", ".json")):
        raise DataError(f"{source}: no such folder, and no token file {source}.bin; check the path")
    return [prefix]


def bytes_of(prefix: Path) -> int:
    """The bytes of the .bin and .idx that exist."""
    total = 0
    for suffix in (".bin", ".idx"):
        with contextlib.suppress(OSError):
            total += with_suffix(prefix, suffix).stat().st_size
    return total


def verify_token_files(
    prefixes: list[Path],
    tokenizer_hash: str | None = None,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Verified]:
    """Check one token file after the other, with so many threads.

    Args:
        prefixes: as `find_token_files` gives them.
        tokenizer_hash: if given, a file of another tokenizer is a damage.
        workers: threads that read and hash; what is found does not depend on them.
        progress: told now and then how many bytes of all files, as `bytes_of` counts them, are behind.
    """
    behind = 0
    for prefix in prefixes:
        size = bytes_of(prefix)
        start = behind

        def report(done: int, start: int = start) -> None:
            if progress is not None:
                progress(start + done)

        yield _verify_one(prefix, tokenizer_hash, workers, report)
        behind += size
        report(size)


def _verify_one(prefix: Path, tokenizer_hash: str | None, workers: int, progress: Callable[[int], None]) -> Verified:
    manifest: Manifest | None = None
    damages: list[DataError] = []
    try:
        manifest = Manifest.load(prefix)
        file = TokenFile(prefix)
        found = file.find_damage(progress, workers)
        damages += itertools.islice(found, DAMAGES_LISTED)
        more = sum(1 for _ in found)
        if more:
            damages.append(DataError(f"{prefix}.bin: {more:,} chunks more are damaged; restore the file from a copy"))
        file.check(tokenizer_hash)
    except DataError as error:
        damages.append(error)
    return Verified(prefix, manifest, damages)
