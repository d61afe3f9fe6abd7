"""Near-duplicates: a signature for each document, and the search among the signatures of a whole corpus.

Both methods compare shingles, n neighbouring units of a text. A unit is a word, or one character of a script that is
written without spaces; case, punctuation and spaces do not count (csrc/shingles.hpp). What is found, by either:

    <folder>/<i>.duplicates    of the i-th file of signatures, the documents that have an earlier copy: `DUPLICATE`

Pairs of near-duplicates are joined to clusters, and of a cluster the earliest document stays: by the order of files,
then by its place in its file. So a chain of small changes ends in one document, although its ends may differ by more
than the threshold; the record tells the distance from the document that stays. Choosing by order alone keeps
the result independent of tasks and memory, and lets the order of sources say which of them is trusted.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import orjson
import xxhash

import mindllm_engine._native as _native
from mindllm_engine.data.atomic_files import cannot_write
from mindllm_engine.errors import ConfigError, DataError

# Of a document that has an earlier copy: its place in its file, the file and place of the document that stays, and the
# distance of their signatures (bits of SimHash, values of MinHash), or EXACT_COPY where the texts are equal.
DUPLICATE = np.dtype([("ordinal", "<u4"), ("kept_file", "<u4"), ("kept_ordinal", "<u4"), ("distance", "<u4")])
EXACT_COPY = 0xFFFFFFFF
# Raised when a change of the code changes signatures: older ones are then refused.
_VERSION = 1
# Languages written without spaces between words.
_SPACELESS = ("zh", "ja", "th", "lo", "km", "my", "bo", "yue", "wuu")
_MEMORY_BYTES_AT_LEAST = 1 << 20


@dataclass
class NearDuplicatesConfig:
    """Which documents count as copies of another. The paper removes near-duplicates (section 2), without numbers."""

    method: Literal["simhash", "minhash", "none"] = "simhash"
    """`simhash`: 20 bytes a document, finds nearly equal texts; `minhash`: 460 bytes, finds texts that share most of
    their shingles, short ones too; `none`: keeps everything."""
    distance: int = 3
    """SimHash: signatures (64 bits) that differ in so many bits or fewer are of near-duplicates; 0 to 7. 3 is from
    Manku, Jain and Das Sarma (2007). No pair is missed."""
    simhash_characters: int = 2
    """SimHash: characters of a shingle in languages without spaces. 1 finds more near-duplicates (of texts with 1 % of
    characters changed 39-88 % instead of 15-57 %, by kind), and more that are none where many have one subject."""
    simhash_words: int = 2
    """SimHash: words of a shingle in all other languages; see above."""
    shortest: int = 32
    """SimHash: texts with fewer shingles are near-duplicates only if all their words or characters are equal."""
    hashes: int = 112
    """MinHash: values of a signature (four bytes each)."""
    bands: int = 14
    """MinHash: texts are compared if they agree in all `hashes / bands` values of one band: at a similarity of 0.8 that
    is so for 92 % of pairs. 14 bands of 8 are FineWeb's."""
    similarity: float = 0.7
    """MinHash: least share of equal values, which estimates the Jaccard similarity of sets of shingles."""
    minhash_characters: int = 3
    """MinHash: characters of a shingle in languages without spaces."""
    minhash_words: int = 5
    """MinHash: words of a shingle in all other languages. 5 is FineWeb's."""

    def validate(self) -> None:
        """Raises ConfigError for an impossible value."""
        if not 0 <= self.distance <= 7:
            raise ConfigError(f"near_duplicates.distance is {self.distance}; 0 to 7 bits can be searched for")
        for name in ("simhash_characters", "simhash_words", "minhash_characters", "minhash_words"):
            if not 1 <= getattr(self, name) <= 1000:
                raise ConfigError(f"near_duplicates.{name} is {getattr(self, name)}; it must be 1 to 1000")
        if self.shortest < 0:
            raise ConfigError(f"near_duplicates.shortest is {self.shortest}; it must not be negative")
        if not 1 <= self.hashes <= 10_000:
            raise ConfigError(f"near_duplicates.hashes is {self.hashes}; it must be 1 to 10000")
        if self.bands < 1 or self.hashes % self.bands:
            raise ConfigError(f"near_duplicates.bands is {self.bands}; it must divide hashes, {self.hashes}")
        if not 0 < self.similarity <= 1:
            raise ConfigError(f"near_duplicates.similarity is {self.similarity}; it must be above 0 and at most 1")


class Signer(Protocol):
    """Makes signature records, all of one length.

    Attributes:
        record_bytes: of a record; 0 where nothing is to be found.
    """

    record_bytes: int

    def sign(self, text: str, lang: str) -> bytes:
        """The record of a text in a language (ISO code; others than those without spaces are alike). Raises
        UnicodeEncodeError for a lone surrogate."""


class SimHashSigner:
    """See `Signer`."""

    record_bytes = 8 + _native.SIGNATURE_RECORD_TAIL

    def __init__(self, config: NearDuplicatesConfig) -> None:
        self.config, self.settings = config, signature_settings(config)

    def sign(self, text: str, lang: str) -> bytes:
        n = self.config.simhash_characters if lang in _SPACELESS else self.config.simhash_words
        record: bytes = _native.simhash_record(text, n, self.config.shortest, self.settings)
        return record


class MinHashSigner:
    """See `Signer`."""

    def __init__(self, config: NearDuplicatesConfig) -> None:
        self.config, self.settings = config, signature_settings(config)
        self.hasher = _native.MinHasher(config.hashes)
        self.record_bytes = 4 * config.hashes + _native.SIGNATURE_RECORD_TAIL

    def sign(self, text: str, lang: str) -> bytes:
        n = self.config.minhash_characters if lang in _SPACELESS else self.config.minhash_words
        record: bytes = self.hasher.record(text, n, self.settings)
        return record


class NoSigner:
    """See `Signer`: for method `none`."""

    record_bytes = 0

    def sign(self, text: str, lang: str) -> bytes:
        return b""


def make_signer(config: NearDuplicatesConfig) -> Signer:
    """The signer of a config's method. Not for pickling. Raises ConfigError for an impossible value."""
    config.validate()
    if config.method == "simhash":
        return SimHashSigner(config)
    return MinHashSigner(config) if config.method == "minhash" else NoSigner()


def signature_settings(config: NearDuplicatesConfig) -> int:
    """A number for all that decides a signature: those of other settings are refused."""
    simhash = (config.simhash_characters, config.simhash_words, config.shortest)
    minhash = (config.minhash_characters, config.minhash_words, config.hashes)
    own = simhash if config.method == "simhash" else minhash
    return xxhash.xxh3_64_intdigest(orjson.dumps((_VERSION, config.method, own)))


@dataclass(frozen=True)
class DuplicateCounts:
    """What was found.

    Attributes:
        documents: searched.
        exact: documents whose text equals that of the document that stays.
        near: other documents that have an earlier copy.
    """

    documents: int
    exact: int
    near: int


def find_duplicates(
    config: NearDuplicatesConfig, signature_files: Sequence[Path], folder: Path, memory_bytes: int
) -> DuplicateCounts:
    """Find the documents that have an earlier copy, over all files in the given order, and write
    `<folder>/<i>.duplicates` for each file: records of DUPLICATE by ordinal. A file appears when complete; the folder
    is made.

    Memory stays below `memory_bytes` (1 MiB at least) beside a few MB. Beyond that, nameless files in the folder are
    sorted, of up to 52 bytes a document for SimHash and 20 and 16 a band for MinHash; the result is the same.

    Raises ConfigError for an impossible value, DataError for signatures that are missing, damaged or made with other
    settings, and for a full disk.
    """
    config.validate()
    if memory_bytes < _MEMORY_BYTES_AT_LEAST:
        raise ConfigError(
            f"near-duplicates get {memory_bytes} bytes of memory; give them {_MEMORY_BYTES_AT_LEAST} at least"
        )
    paths = [os.fsencode(path) for path in signature_files]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if config.method == "none":
            for number in range(len(paths)):
                (folder / f"{number}.duplicates").write_bytes(b"")
            return DuplicateCounts(0, 0, 0)
        settings, target = signature_settings(config), os.fsencode(folder)
        if config.method == "simhash":
            counts = _native.simhash_duplicates(paths, settings, config.distance, target, memory_bytes)
        else:
            least_equal = int(np.ceil(config.similarity * config.hashes - 1e-9))
            counts = _native.minhash_duplicates(
                paths, settings, config.hashes, config.bands, least_equal, target, memory_bytes
            )
    except ValueError as error:
        raise DataError(f"{error}; delete it and build the corpus again") from error
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: is missing; build the corpus again") from error
    except OSError as error:
        raise cannot_write(Path(error.filename or folder), error) from error
    return DuplicateCounts(*counts)


def read_duplicates(path: Path) -> np.ndarray:
    """The records of one `.duplicates` file, by ordinal. Raises DataError where it is missing or no such file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; find near-duplicates again") from error
    if len(data) % DUPLICATE.itemsize:
        raise DataError(f"{path}: is cut short; delete it and find near-duplicates again")
    return np.frombuffer(data, DUPLICATE)
