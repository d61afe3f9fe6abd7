"""What all steps have in common: a step changes a document in place or drops it, one at a time.

In `document.metadata` steps find `source` (its name in the config) and, once `low_quality.py` has identified it, `lang`
("zh", "en", ...); `url` where the record has one. `document.id` is `<source>/<file>:<record>`, unique in a corpus.
"""

from abc import ABC, abstractmethod

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from mindllm_engine.corpus.ledger import Drop, Ledger
from mindllm_engine.errors import MindLLMError


class CorpusStep(PipelineStep, ABC):
    """A step by document. A subclass sets `name` and writes `apply`.

    Documents are handed on one by one, each before the next is taken: the writer at the end of a pipeline has to know
    that a file's documents have all passed when the reader takes up another.

    Attributes:
        ledger: of the file being read; `build.py` has all steps of a pipeline share one.
    """

    type = "corpus"
    name: str

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()

    @abstractmethod
    def apply(self, document: Document) -> Drop | None:
        """Change the document in place; the reason to drop it, or None to keep it."""

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """See datatrove. A document on which the step itself fails is dropped under "failed: <error>"."""
        for document in data:
            self.ledger.enter(self.name, len(document.text))
            with self.track_time():
                try:
                    drop = self.apply(document)
                except MindLLMError:
                    raise  # what the step works with is wrong, not the document
                except Exception as error:
                    # One document in a billion must not end a task of days; the report shows it.
                    drop = Drop(f"failed: {type(error).__name__}", str(error))
            if drop is None:
                self.stat_update("kept")
                yield document
            else:
                self.stat_update("dropped", f"dropped: {drop.reason}")
                self.ledger.drop(self.name, document.id, document.text, drop)

    def count(self, what: str, number: int = 1) -> None:
        """Add to a counter of this step, in its ledger and in datatrove's statistics."""
        if number:
            self.ledger.count(self.name, what, number)
            self.stat_update(what, value=number)
