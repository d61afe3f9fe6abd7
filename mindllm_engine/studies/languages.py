"""Held-out losses by language: bits per byte, so that languages compare whatever the tokenizer makes of them."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from mindllm_engine.data.manifest import Manifest
from mindllm_engine.errors import DataError
from mindllm_engine.studies.results import Result


def source_languages(result: Result) -> dict[str, str]:
    """Source -> language, of all sources that the run's config names, whether it trained on them or not. Raises
    DataError for a token file without its manifest."""
    if result.config.corpus is not None:
        return {name: source.lang for name, source in result.config.corpus.sources.items()}
    return {name: Manifest.load(prefix).lang for name, prefix in result.config.data.sources.items()}


def language_bits(result: Result, record: Mapping[str, Any], language: str) -> float:
    """Bits per byte in a record of held-out losses, the mean over a language's sources.

    Raises:
        DataError: no source of the language has held-out documents.
    """
    names = [name for name, its in source_languages(result).items() if its == language]
    bits = [record[key] for name in names if (key := f"heldout_bpb/{name}") in record]
    if not bits:
        raise DataError(
            f"{result.folder}: has no held-out text of the language {language}; raise corpus.holdout, or name a source "
            f"of it (here: {', '.join(sorted(set(source_languages(result).values())))})"
        )
    return fmean(bits)
