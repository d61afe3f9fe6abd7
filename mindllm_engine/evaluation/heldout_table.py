"""Held-out losses of a run by source and language, before and after, beside models of counts and a compressor."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mindllm_engine.data.loss_mask import SUPERVISED
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.evaluation.baselines import BigramModel, UnigramModel, bits_per_byte, xz_bits_per_byte
from mindllm_engine.training.setup import Data


@dataclass(frozen=True)
class ReportRow:
    """One source, language, or everything. Losses in nats a token, the rest in bits per byte.

    `unigram` and `bigram` are models of all training tokens, `own_bigram` one of this source's alone; None where only
    parts of the text are learnt (tuning), which such models cannot be compared on.
    """

    name: str
    lang: str
    heldout_bytes: int
    loss_before: float
    loss_after: float
    bpb_before: float
    bpb_after: float
    unigram: float | None = None
    bigram: float | None = None
    own_bigram: float | None = None
    xz: float | None = None


def make_rows(data: Data, vocab_size: int, before: dict[str, Any], after: dict[str, Any]) -> list[ReportRow]:
    """The table: one row for each source with held-out text, each language, and everything."""
    chosen = [
        (name, number, heldout)
        for number, (name, heldout) in enumerate(zip(data.names, data.heldout, strict=True))
        if heldout is not None and f"heldout_bpb/{name}" in after and f"heldout_bpb/{name}" in before
    ]
    rows = [
        ReportRow(
            name=name,
            lang=heldout.manifest.lang,
            heldout_bytes=heldout.manifest.text_bytes,
            loss_before=before[f"heldout_loss/{name}"],
            loss_after=after[f"heldout_loss/{name}"],
            bpb_before=before[f"heldout_bpb/{name}"],
            bpb_after=after[f"heldout_bpb/{name}"],
        )
        for name, _, heldout in chosen
    ]
    if not rows:
        return []
    targets = [predicted_tokens(heldout) for _, _, heldout in chosen]
    everything = None
    if all(heldout.mask is None for _, _, heldout in chosen):
        sources = [source if isinstance(source, TokenFile) else source.whole() for source in data.sources]
        rows = with_baselines(rows, [(sources[number], heldout) for _, number, heldout in chosen], sources, vocab_size)
        if data.tokenizer is not None:
            texts = ["\n".join(heldout_documents(heldout, data)).encode() for _, _, heldout in chosen]
            everything = xz_bits_per_byte(b"\n".join(texts)) if texts else None
    totals = [mean_row(lang, lang, rows, targets, None) for lang in sorted({row.lang for row in rows})]
    return [*rows, *totals, mean_row("all", "all", rows, targets, everything)]


def predicted_tokens(file: TokenFile) -> int:
    """Tokens of a held-out file that a network is scored on."""
    if file.mask is not None:
        return int((file.mask & SUPERVISED).sum())
    return int((file.lengths - 1).clip(min=0).sum())


def with_baselines(
    rows: list[ReportRow], files: list[tuple[TokenFile, TokenFile]], sources: list[TokenFile], vocab_size: int
) -> list[ReportRow]:
    """The rows with the models of counts; `files` are the training and the held-out file of each."""
    unigram, bigram = UnigramModel(sources, vocab_size), BigramModel(sources, vocab_size)
    return [
        replace(
            row,
            unigram=bits_per_byte(unigram.nats(heldout), row.heldout_bytes),
            bigram=bits_per_byte(bigram.nats(heldout), row.heldout_bytes),
            own_bigram=bits_per_byte(BigramModel([source], vocab_size).nats(heldout), row.heldout_bytes),
        )
        for row, (source, heldout) in zip(rows, files, strict=True)
    ]


def heldout_documents(file: TokenFile, data: Data) -> list[str]:
    """The text of each held-out document, from its tokens."""
    assert data.tokenizer is not None
    return [data.tokenizer.decode(file.document(number).tolist()) for number in range(file.documents)]


def mean_row(name: str, lang: str, rows: list[ReportRow], targets: list[int], xz: float | None) -> ReportRow:
    """The mean of a language's rows (or of all): losses by tokens, bits by bytes."""
    chosen = [(row, count) for row, count in zip(rows, targets, strict=True) if lang in (row.lang, "all")]
    tokens = sum(count for _, count in chosen)
    text_bytes = sum(row.heldout_bytes for row, _ in chosen)

    def by_tokens(field: str) -> float:
        return sum(getattr(row, field) * count for row, count in chosen) / tokens

    def by_bytes(field: str) -> float:
        return sum(getattr(row, field) * row.heldout_bytes for row, _ in chosen) / text_bytes

    def of_baseline(field: str) -> float | None:
        return None if any(getattr(row, field) is None for row, _ in chosen) else by_bytes(field)

    return ReportRow(
        name=name,
        lang=lang,
        heldout_bytes=text_bytes,
        loss_before=by_tokens("loss_before"),
        loss_after=by_tokens("loss_after"),
        bpb_before=by_bytes("bpb_before"),
        bpb_after=by_bytes("bpb_after"),
        unigram=of_baseline("unigram"),
        bigram=of_baseline("bigram"),
        own_bigram=of_baseline("own_bigram"),
        xz=xz,
    )


COLUMNS = (
    ("source", "name", ""),
    ("lang", "lang", ""),
    ("held-out KB", "heldout_bytes", "kb"),
    ("loss before", "loss_before", ".3f"),
    ("loss after", "loss_after", ".3f"),
    ("bpb before", "bpb_before", ".3f"),
    ("bpb after", "bpb_after", ".3f"),
    ("unigram", "unigram", ".3f"),
    ("bigram", "bigram", ".3f"),
    ("own bigram", "own_bigram", ".3f"),
    ("xz -9", "xz", ".3f"),
)


def cells(row: ReportRow) -> list[str]:
    """A row of the table as text."""
    texts = []
    for _, field, form in COLUMNS:
        value = getattr(row, field)
        if value is None:
            texts.append("")
        elif form == "kb":
            texts.append(f"{value / 1000:,.1f}")
        else:
            texts.append(format(value, form) if not isinstance(value, float) or math.isfinite(value) else "nan")
    return texts


def to_markdown(rows: Sequence[ReportRow]) -> str:
    """The table in Markdown."""
    lines = ["| " + " | ".join(title for title, _, _ in COLUMNS) + " |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"
