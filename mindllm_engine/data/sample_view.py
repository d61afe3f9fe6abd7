"""One sample of a plan taken apart, for people: the documents it is made of, and which of its targets count."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mindllm_engine.data.file_errors import reading
from mindllm_engine.data.loader import IGNORED, Loader
from mindllm_engine.data.remote import Source


@dataclass(frozen=True, eq=False)
class Piece:
    """Tokens [begin, end) of a document. The last token of a sample is only predicted: where a document goes on beyond
    the sample, the next piece of it begins with that token.

    Attributes:
        document: its number in the source's file.
        length: tokens of the whole document.
        ids: (end - begin,) int64.
        targets: how many of the sample's targets, those that count, are predicted from this piece.
    """

    document: int
    begin: int
    end: int
    length: int
    ids: NDArray[np.int64]
    targets: int

    @property
    def begins_before(self) -> bool:
        """Whether the document has tokens before this piece."""
        return self.begin > 0

    @property
    def continues(self) -> bool:
        """Whether the document has tokens after this piece."""
        return self.end < self.length


@dataclass(frozen=True, eq=False)
class SampleView:
    """A global sample.

    Attributes:
        sample: its number; block: of which block of the plan.
        source: id of its source, the one that all its documents are of.
        seq_len: its inputs, and its targets.
        pieces: of documents, in order.
        padding: inputs at the end that no document fills (best-fit packing).
        ignored: places [first, last] in [0, seq_len) whose targets do not count, runs in order.
    """

    sample: int
    block: int
    source: int
    seq_len: int
    pieces: list[Piece]
    padding: int
    ignored: list[tuple[int, int]]


def look_at(loader: Loader, files: Sequence[Source], sample: int) -> SampleView:
    """A sample as the loader gives it to training; `files` are the loader's. Fetches what a remote source lacks here.

    Raises:
        DataError: a file is damaged, cut short or lost, or holds an id outside the vocabulary.
    """
    batch = loader.read(np.array([sample]))
    targets = batch.targets.numpy()
    seq_len = len(targets)
    # The last target is a token of the sample too, if it counts; if not, it is of a document that begins there.
    row = np.append(batch.tokens.numpy(), targets[-1:][targets[-1:] != IGNORED])
    source, stretches = loader.find(sample)
    pieces = []
    at = 0
    for document, begin, _, count in stretches.tolist():
        ids = row[at : at + count]
        if at < seq_len:
            counted = int(np.count_nonzero(targets[at : at + count] != IGNORED))
            length = _document_tokens(files[source], document)
            pieces.append(Piece(document, begin, begin + len(ids), length, ids, counted))
        at += count
    return SampleView(
        sample=sample,
        block=next(n for n, block in enumerate(loader.plan.blocks) if sample < block.first_sample + block.samples),
        source=source,
        seq_len=seq_len,
        pieces=pieces,
        padding=max(0, seq_len - at),
        ignored=_runs(np.flatnonzero(targets == IGNORED)),
    )


def _document_tokens(file: Source, document: int) -> int:
    with reading(file.index_path):
        return file.reader.document_start(document + 1) - file.reader.document_start(document)


def _runs(places: NDArray[np.int64]) -> list[tuple[int, int]]:
    """The first and last of each run of successive numbers."""
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    return [(int(run[0]), int(run[-1])) for run in runs if len(run)]
