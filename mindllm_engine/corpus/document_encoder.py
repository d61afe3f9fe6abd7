"""From raw batches of records to token ids, in this process or in several; the results keep the order of the input."""

import collections
import concurrent.futures
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mindllm_engine.corpus.holdout import is_held_out
from mindllm_engine.corpus.open_tokenizer import open_tokenizer
from mindllm_engine.corpus.readers import BadRecords, OnBadRecord, RawBatch, parse_batch
from mindllm_engine.data.token_file_builder import token_dtype
from mindllm_engine.errors import DataError, MindLLMError

_BATCHES_AHEAD = 4  # per worker: enough that none waits while a slow batch holds up the order


@dataclass(frozen=True)
class EncoderSettings:
    """All that decides what a record becomes."""

    tokenizer_path: str
    text_field: str
    on_bad_record: OnBadRecord
    holdout: float


@dataclass
class EncodedDocuments:
    """Documents as `<s> text </s>`, back to back."""

    tokens: npt.NDArray[Any]
    """[total] of the dtype that token files of this vocabulary have."""
    lengths: npt.NDArray[np.int32]
    """int32[documents], in tokens, special tokens included."""
    text_bytes: int
    """The size of the texts in UTF-8."""


@dataclass
class EncodedBatch:
    """One raw batch, encoded."""

    train: EncodedDocuments
    heldout: EncodedDocuments
    empty_documents: int
    """Texts of nothing or of white space alone, which are dropped."""
    bad_records: BadRecords
    bytes_read: int
    """From the raw batch: how far its file had been read, for progress."""


class DocumentEncoder:
    """Turns raw batches into encoded ones, for training or held out (see `is_held_out`)."""

    def __init__(self, settings: EncoderSettings) -> None:
        """Raises DataError if the tokenizer cannot be read."""
        self._settings = settings
        self._tokenizer = open_tokenizer(settings.tokenizer_path)
        self._dtype = token_dtype(self._tokenizer.vocab_size)

    def encode(self, batch: RawBatch) -> EncodedBatch:
        """Raises DataError for a bad record if the settings say so."""
        texts, bad_records = parse_batch(batch, self._settings.text_field, self._settings.on_bad_record)
        train: list[tuple[str, int]] = []  # a text and its size in UTF-8
        heldout: list[tuple[str, int]] = []
        for text in texts:
            if not text or text.isspace():
                continue
            utf8 = text.encode()
            side = heldout if is_held_out(utf8, self._settings.holdout) else train
            side.append((text, len(utf8)))
        return EncodedBatch(
            self._encode_documents(train),
            self._encode_documents(heldout),
            len(texts) - len(train) - len(heldout),
            bad_records,
            batch.bytes_read,
        )

    def _encode_documents(self, documents: list[tuple[str, int]]) -> EncodedDocuments:
        ids, lengths = self._tokenizer.encode_batch([text for text, _ in documents])
        lengths += 2
        ends = np.cumsum(lengths, dtype=np.int64)
        tokens = np.empty(len(ids) + 2 * len(documents), dtype=self._dtype)
        is_text = np.ones(len(tokens), dtype=bool)
        is_text[ends - 1] = False
        is_text[ends - lengths] = False
        tokens[is_text] = ids
        tokens[ends - lengths] = self._tokenizer.bos_id
        tokens[ends - 1] = self._tokenizer.eos_id
        return EncodedDocuments(tokens, lengths, sum(size for _, size in documents))


def encode_in_order(
    batches: Iterable[tuple[int, RawBatch]], settings: EncoderSettings, workers: int
) -> Generator[tuple[int, EncodedBatch], None, None]:
    """Encode labelled batches and yield them with their labels in the order of the input, whatever `workers` is.

    With one worker this process does it; with more, that many others do, and end with this one however it ends.
    An error in `batches` is raised after all that came before it has been yielded. Raises MindLLMError if a process is
    killed.
    """
    if workers == 1:
        encoder = DocumentEncoder(settings)
        for label, batch in batches:
            yield label, encoder.encode(batch)
        return
    # A fork server, because this process may have threads and an initialised GPU, which a fork must not copy.
    executor = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("forkserver"), _start_worker, (settings,)
    )
    waiting: collections.deque[tuple[int, concurrent.futures.Future[EncodedBatch]]] = collections.deque()
    source = iter(batches)
    input_error: DataError | None = None
    try:
        while True:
            try:
                for label, batch in itertools.islice(source, _BATCHES_AHEAD * workers - len(waiting)):
                    waiting.append((label, executor.submit(_encode, batch)))
            except DataError as error:  # from here on the source is exhausted
                input_error = error
            if not waiting:
                break
            label, future = waiting.popleft()
            yield label, future.result()
        if input_error is not None:
            raise input_error
    except BrokenProcessPool as error:
        raise MindLLMError(
            "a tokenizing process was killed, most often for want of memory; run again with fewer workers "
            "(finished input files are kept)"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


_worker_encoder: DocumentEncoder | None = None


def _start_worker(settings: EncoderSettings) -> None:
    global _worker_encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker_encoder = DocumentEncoder(settings)


def _end_with_parent() -> None:
    """A worker waits for work on a pipe that it holds open itself, so it would outlive a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode(batch: RawBatch) -> EncodedBatch:
    assert _worker_encoder is not None
    return _worker_encoder.encode(batch)
