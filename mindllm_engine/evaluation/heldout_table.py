"""Held-out losses of a run by source and language, before and after, beside models of counts and a compressor."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.evaluation.baselines import BigramModel, UnigramModel, bits_per_byte, xz_bits_per_byte
from mindllm_engine.training.setup import Data


@dataclass(frozen=True)
class ReportRow:
    """One source, language, or everything. Losses in nats a token, the rest in bits per byte.

    `unigram` and `bigram` are models of all training tokens, `own_bigram` one of this source's alone.
    """

    name: str
    lang: str
    heldout_bytes: int
    loss_before: float
    loss_after: float
    bpb_before: float
    bpb_after: float
    unigram: float
    bigram: float
    own_bigram: float
    xz: float | None = None


def make_rows(data: Data, vocab_size: int, before: dict[str, Any], after: dict[str, Any]) -> list[ReportRow]:
    """The table: one row for each source with held-out text, each language, and everything."""
    sources = [source if isinstance(source, TokenFile) else source.whole() for source in data.sources]
    unigram, bigram = UnigramModel(sources, vocab_size), BigramModel(sources, vocab_size)
    rows: list[ReportRow] = []
    targets: list[int] = []
    texts: list[bytes] = []
    for name, source, heldout in zip(data.names, sources, data.heldout, strict=True):
        if heldout is None or f"heldout_bpb/{name}" not in after or f"heldout_bpb/{name}" not in before:
            continue
        text_bytes = heldout.manifest.text_bytes
        rows.append(
            ReportRow(
                name=name,
                lang=heldout.manifest.lang,
                heldout_bytes=text_bytes,
                loss_before=before[f"heldout_loss/{name}"],
                loss_after=after[f"heldout_loss/{name}"],
                bpb_before=before[f"heldout_bpb/{name}"],
                bpb_after=after[f"heldout_bpb/{name}"],
                unigram=bits_per_byte(unigram.nats(heldout), text_bytes),
                bigram=bits_per_byte(bigram.nats(heldout), text_bytes),
                own_bigram=bits_per_byte(BigramModel([source], vocab_size).nats(heldout), text_bytes),
            )
        )
        targets.append(int((heldout.lengths - 1).clip(min=0).sum()))
        if data.tokenizer is not None:
            texts.append("\n".join(heldout_documents(heldout, data)).encode())
    everything = xz_bits_per_byte(b"\n".join(texts)) if texts else None
    totals = [mean_row(lang, lang, rows, targets, None) for lang in sorted({row.lang for row in rows})]
    return [*rows, *totals, mean_row("all", "all", rows, targets, everything)]


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

    return ReportRow(
        name=name,
        lang=lang,
        heldout_bytes=text_bytes,
        loss_before=by_tokens("loss_before"),
        loss_after=by_tokens("loss_after"),
        bpb_before=by_bytes("bpb_before"),
        bpb_after=by_bytes("bpb_after"),
        unigram=by_bytes("unigram"),
        bigram=by_bytes("bigram"),
        own_bigram=by_bytes("own_bigram"),
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
