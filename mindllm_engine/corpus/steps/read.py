"""The first step of a pipeline: the documents of input files, file by file.

A task takes every so manieth file. Files whose output is up to date are passed over, and each file has an output of its
own: so what is written does not depend on the number of tasks.
"""

from collections.abc import Iterator

import orjson
import zstandard
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from mindllm_engine.corpus.corpus_files import FileOutput, WorkFile, is_up_to_date
from mindllm_engine.corpus.ledger import Drop
from mindllm_engine.corpus.pages.extract import ExtractConfig, Extractor
from mindllm_engine.corpus.pages.records import BadRecord, ReadConfig, read_records
from mindllm_engine.errors import DataError


class ReadPages(PipelineStep):
    """Raw records of any format, and the text in them. What cannot be read is dropped with its reason.

    Args:
        files: of all tasks.
        read: how a source's records are read, by its name.
        categories: of each source.
    """

    type = "corpus"
    name = "read"

    def __init__(
        self,
        files: list[WorkFile],
        output: FileOutput,
        read: dict[str, ReadConfig],
        categories: dict[str, str],
        extract: ExtractConfig,
    ) -> None:
        super().__init__()
        self.files, self.output = files, output
        self.read, self.categories, self.extract = read, categories, extract

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """See datatrove."""
        extractor: Extractor | None = None
        try:
            for file in self.files[rank::world_size]:
                if is_up_to_date(file):
                    continue
                extractor = extractor or Extractor(self.extract)
                self.output.begin(file, with_signatures=True)
                yield from self.documents(file, extractor)
                self.output.finish()
        finally:
            if extractor is not None:
                extractor.close()

    def documents(self, file: WorkFile, extractor: Extractor) -> Iterator[Document]:
        """Those of one file."""
        ledger = self.output.ledger
        ledger.step(self.name)
        for record in read_records(file.path, self.read[file.source]):
            document_id = f"{file.source}/{file.documents_path.name.removesuffix('.jsonl.zst')}:{record.number}"
            if isinstance(record, BadRecord):
                ledger.enter(self.name, 0)
                ledger.drop(self.name, document_id, "", Drop(record.reason, record.detail))
                self.stat_update("dropped")
                continue
            with self.track_time():
                text = extractor.extract(record)
            ledger.enter(self.name, 0 if isinstance(text, Drop) else len(text))
            if isinstance(text, Drop):
                ledger.drop(self.name, document_id, "", text)
                self.stat_update("dropped")
                continue
            self.stat_update("kept")
            metadata = {**record.metadata, "source": file.source, "category": self.categories[file.source]}
            yield Document(text, document_id, metadata=metadata)


class ReadCleaned(PipelineStep):
    """What stage 1 wrote. Each document has `metadata["file"]`, the number of its file, and `["ordinal"]`, its place in
    it from 0.

    Args:
        files: of all tasks, with the outputs of stage 1 as their inputs.
    """

    type = "corpus"
    name = "read cleaned"

    def __init__(self, files: list[WorkFile], output: FileOutput) -> None:
        super().__init__()
        self.files, self.output = files, output

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """See datatrove. Raises DataError where a file of stage 1 is missing or damaged."""
        for file in self.files[rank::world_size]:
            if is_up_to_date(file):
                continue
            self.output.begin(file)
            for ordinal, line in enumerate(lines(file.path)):
                record = orjson.loads(line)
                place = {"file": file.number, "ordinal": ordinal}
                self.stat_update("kept")
                yield Document(record["text"], record["id"], metadata={**record["metadata"], **place})
            self.output.finish()


def lines(path: str) -> Iterator[bytes]:
    """Those of a .jsonl.zst file of our own. Raises DataError."""
    try:
        with open(path, "rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as reader:
            rest = b""
            while chunk := reader.read(1 << 20):
                *whole, rest = (rest + chunk).split(b"\n")
                yield from whole
    except (OSError, zstandard.ZstdError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it and build the corpus again") from error
    if rest:
        raise DataError(f"{path}: is cut off; delete it and build the corpus again")
