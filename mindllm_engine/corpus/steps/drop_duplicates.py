"""Step 4, after the search: drops the documents that have an earlier copy (corpus/near_duplicates.py)."""

from pathlib import Path

import numpy as np
from datatrove.data import Document

from mindllm_engine.corpus.ledger import Drop
from mindllm_engine.corpus.near_duplicates import EXACT_COPY, read_duplicates
from mindllm_engine.corpus.steps.step import CorpusStep


class DropDuplicates(CorpusStep):
    """Needs `document.metadata["file"]`, the number of the document's file in the search, and `["ordinal"]`, its place
    in it from 0. Documents of a file come one after the other.

    Args:
        folder: what `find_duplicates` wrote into.

    Raises DataError for a missing or damaged file there.
    """

    name = "near-duplicates"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.file: int | None = None  # whose records are held
        self.duplicates: np.ndarray
        self.ordinals: np.ndarray  # of the records, on their own: searched for every document

    def apply(self, document: Document) -> Drop | None:
        """See `CorpusStep`."""
        file, ordinal = document.metadata["file"], document.metadata["ordinal"]
        if file != self.file:
            self.duplicates = read_duplicates(self.folder / f"{file}.duplicates")
            self.ordinals = np.ascontiguousarray(self.duplicates["ordinal"])
            self.file = file
        at = int(np.searchsorted(self.ordinals, ordinal))
        if at == len(self.ordinals) or self.ordinals[at] != ordinal:
            return None
        _, kept_file, kept_ordinal, distance = self.duplicates[at].tolist()
        kept = f"of {kept_file}:{kept_ordinal}"
        if distance == EXACT_COPY:
            return Drop("duplicate", kept)
        return Drop("near-duplicate", f"{kept}, distance {distance}")
