"""The last step of a pipeline: what has come through all others."""

from typing import Any

from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from mindllm_engine.corpus.corpus_files import FileOutput
from mindllm_engine.corpus.near_duplicates import NearDuplicatesConfig, make_signer

# Of the metadata, what the finished corpus keeps, beside id and text.
KEPT = ("lang", "category", "source", "url", "record_id")


class WriteCleaned(PipelineStep):
    """Writes documents and their signatures, for the stages after."""

    type = "corpus"
    name = "write cleaned"

    def __init__(self, output: FileOutput, near_duplicates: NearDuplicatesConfig) -> None:
        super().__init__()
        self.output, self.near_duplicates = output, near_duplicates

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """See datatrove."""
        signer = make_signer(self.near_duplicates)
        for document in data:
            with self.track_time():
                lang = document.metadata.get("lang", "")
                record = {"id": document.id, "text": document.text, "metadata": document.metadata}
                self.output.write(record, lang, signer.sign(document.text, lang))
            yield document


class WriteDocuments(PipelineStep):
    """Writes the finished corpus: records of id, text, lang, category, source, and url and record_id where known."""

    type = "corpus"
    name = "write"

    def __init__(self, output: FileOutput) -> None:
        super().__init__()
        self.output = output

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """See datatrove."""
        for document in data:
            with self.track_time():
                record: dict[str, Any] = {"id": document.id, "text": document.text}
                record |= {key: document.metadata[key] for key in KEPT if key in document.metadata}
                self.output.write(record, document.metadata.get("lang", ""))
            yield document
