"""A sample of a corpus to train a tokenizer on, with each language and each source in equal parts."""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass

from mindllm_engine.corpus.holdout import is_held_out
from mindllm_engine.corpus.readers import read_texts

# From one long document no more than this, lest a few books fill a source's share.
_DOCUMENT_CHARS = 20_000
# Text is about three times its size in a compressed file. Only the spread of the sample depends on this guess.
_COMPRESSION = 3


@dataclass(frozen=True)
class SampledSource:
    """Files of one source, for `balanced_sample`."""

    name: str
    lang: str
    paths: list[str]


class _Stream:
    """A source's documents in the order in which the sample takes them."""

    def __init__(self, source: SampledSource, share_bytes: float, seed: int, text_field: str, holdout: float) -> None:
        self.lang = source.lang
        self.taken_bytes = 0
        self.texts = _spread(source, share_bytes, seed, text_field, holdout)


def balanced_sample(
    sources: list[SampledSource], budget_bytes: int, seed: int, text_field: str = "text", holdout: float = 0.0
) -> Iterator[str]:
    """Texts of about `budget_bytes` of UTF-8 in all, the same for the same files and seed.

    Each text comes from the language that has given the fewest bytes so far, and there from the source that has; a
    source that is used up leaves its share to the others of its language, then to the other languages. A source larger
    than its share is sampled over all its files, not from their heads. Bad records are passed over (tokenizing counts
    them), and so are the documents that tokenizing with the same `holdout` holds out (see `is_held_out`).
    """
    languages = {source.lang for source in sources}
    sources_of = {lang: sum(source.lang == lang for source in sources) for lang in languages}
    streams = [
        _Stream(source, budget_bytes / len(languages) / sources_of[source.lang], seed, text_field, holdout)
        for source in sources
    ]
    taken_of_lang = dict.fromkeys(sorted(languages), 0)
    left = budget_bytes
    while streams and left > 0:
        stream = min(streams, key=lambda stream: (taken_of_lang[stream.lang], stream.taken_bytes))
        text = next(stream.texts, None)
        if text is None:
            streams.remove(stream)
            continue
        size = len(text.encode())
        stream.taken_bytes += size
        taken_of_lang[stream.lang] += size
        left -= size
        yield text


def _spread(source: SampledSource, share_bytes: float, seed: int, text_field: str, holdout: float) -> Iterator[str]:
    """A random part of the documents about as large as the share, then, in case it was too small, the rest."""
    text_bytes = sum(
        os.path.getsize(path) * (1 if path.endswith((".jsonl", ".json")) else _COMPRESSION) for path in source.paths
    )
    chance = min(1.0, share_bytes / max(1, text_bytes))
    paths = list(source.paths)
    random.Random(f"{seed} {source.name} files").shuffle(paths)
    for want_chosen in (True, False) if chance < 1 else (True,):
        choice = random.Random(f"{seed} {source.name} documents")
        for text in read_texts(paths, text_field):
            chosen = choice.random() < chance
            if chosen == want_chosen and text and not is_held_out(text.encode(), holdout):
                yield text[:_DOCUMENT_CHARS]
