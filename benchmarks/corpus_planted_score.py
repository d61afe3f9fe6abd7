"""What became of planted faults (corpus_planted.py) in a finished corpus, kind by kind, and of clean documents.

Caught is a fault whose document was dropped, and besides
- mojibake: mended, so that four fifths of what the garbling had destroyed is there again;
- duplicates: one of the two dropped, whichever;
- self-repetition: shortened to a fifth or less;
- personal data: only if the document is there, a special token stands exactly where the data stood, and the rest of the
  document is still there. Each number or address counts for itself.

A clean document is lost if it is not in the corpus, unless a planted copy of it stays in its place, or it was a copy
from the beginning: the real text has some (a book's chapters in two sources), which are counted by themselves. A copy
is what shares most of its successive characters with a document that is there.
"""

import contextlib
import io
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import zstandard

from benchmarks.corpus_planted import SOURCES, Planted, read_lines, read_truth
from benchmarks.corpus_planted_faults import Secret
from mindllm_engine.corpus import ledger
from mindllm_engine.corpus.corpus_files import CLEANED, DOCUMENTS
from mindllm_engine.corpus.special_tokens import PERSONAL_DATA_TOKENS

CLEAN_LOST_BAR = 0.01
_GRAM, _MENDED, _INTACT, _SHORTENED = 5, 0.8, 0.8, 0.2
_COPY = 0.6  # Jaccard similarity of successive characters by five: one edit in 15 characters or fewer
_LISTED, _SHOWN = 20, 5  # clean documents in a row; missed ones on the terminal
DUPLICATES = "near-duplicates: "
NO_PEER = "no peer: what was planted is known"

Key = tuple[str, str]  # source and id of the input record


@dataclass
class Outputs:
    """A finished corpus.

    Attributes:
        kept: input records that are in it.
        texts: of those that were planted.
        reasons: "step: reason" of dropped input records, as far as the ledgers' examples go.
    """

    kept: set[Key] = field(default_factory=set)
    texts: dict[Key, str] = field(default_factory=dict)
    reasons: dict[Key, str] = field(default_factory=dict)

    def reason(self, key: Key) -> str:
        return self.reasons.get(key, "dropped (not among the ledgers' examples)")


@contextlib.contextmanager
def every_example_kept() -> Iterator[None]:
    """While a corpus is built in this process (`executor.workers: 1`), ledgers keep every dropped document as an
    example and not twenty of each reason; so `score` knows why each one was dropped."""
    usual = ledger.EXAMPLES
    ledger.EXAMPLES = sys.maxsize
    try:
        yield
    finally:
        ledger.EXAMPLES = usual


def score(folder: Path, corpus: Path) -> list[dict[str, Any]]:
    """Rows: the share caught of each kind of fault, and the share lost of the clean documents of each source.

    Args:
        folder: of the planted faults.
        corpus: the `dir` of what was built of them.
    """
    planted = read_truth(folder)
    inputs = {
        path.name.removesuffix(".jsonl.gz"): [record["id"] for record in read_lines(path)]
        for path in sorted((folder / SOURCES).glob("*.jsonl.gz"))
    }
    outputs = read_outputs(corpus, inputs, {(one.source, one.id) for one in planted})
    return fault_rows(planted, outputs) + clean_rows(planted, inputs, outputs, folder)


def read_outputs(corpus: Path, inputs: dict[str, list[str]], planted: set[Key]) -> Outputs:
    """What is in `<corpus>/documents/<source>/*.jsonl.zst`, and the ledgers of both stages."""
    outputs = Outputs()
    for source, ids in inputs.items():
        place = {record_id: number for number, record_id in enumerate(ids)}
        first = 1
        for path in sorted((corpus / DOCUMENTS / source).glob("*.jsonl.zst")):
            for record in read_documents(path):
                key = (source, record["record_id"])
                outputs.kept.add(key)
                if key in planted:
                    outputs.texts[key] = record["text"]
                # `id` ends in the number of the input record, by which the ledgers name those that were dropped.
                first = int(record["id"].rpartition(":")[2]) - place[record["record_id"]]
        for stage in (CLEANED, DOCUMENTS):
            for path in (corpus / stage / source).glob("*.ledger.json"):
                for number, reason in examples_in(orjson.loads(path.read_bytes())["ledger"]):
                    outputs.reasons[source, ids[number - first]] = reason
    return outputs


def read_documents(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as reader:
        yield from map(orjson.loads, io.BufferedReader(reader, 1 << 20))


def examples_in(data: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """(number of the input record, "step: reason")."""
    for step, entry in data.items():
        for words, reason in entry["dropped"].items():
            for _, document_id, *_ in reason["examples"]:
                yield int(document_id.rpartition(":")[2]), f"{step}: {words}"


# --- faults


def fault_rows(planted: list[Planted], outputs: Outputs) -> list[dict[str, Any]]:
    """A row for each kind, and one for all."""
    found: dict[str, list[tuple[Planted, bool, str]]] = {}
    for one in planted:
        for kind, caught, how in verdicts(one, outputs):
            found.setdefault(kind, []).append((one, caught, how))
    rows = []
    for kind, cases in sorted(found.items()):
        caught_by = Counter(how for _, caught, how in cases if caught)
        missed = [{"source": one.source, "id": one.id, "how": how} for one, caught, how in cases if not caught]
        rows.append(row(f"caught: {kind}", sum(caught_by.values()), len(cases), None, caught_by, missed))
    every = [case for cases in found.values() for case in cases]
    caught_all = sum(caught for _, caught, _ in every)
    return [*rows, row("caught: all planted faults", caught_all, len(every), None, Counter(), [])]


def verdicts(one: Planted, outputs: Outputs) -> list[tuple[str, bool, str]]:
    """(kind, whether it was caught, how): one for a document, or one for each secret in it."""
    key = (one.source, one.id)
    text = outputs.texts.get(key)
    if one.fault == "personal data":
        return [(f"personal data: {secret.kind}", *secret_verdict(one, secret, outputs)) for secret in one.secrets]
    if text is None:
        return [(one.kind, True, outputs.reason(key))]
    if one.fault == "mojibake" and restored(one, text) >= _MENDED:
        return [(one.kind, True, "mended")]
    if one.fault == "self-repetition" and len(text) <= _SHORTENED * len(one.text):
        return [(one.kind, True, "shortened")]
    if one.copy_of is not None and one.copy_of not in outputs.kept:
        return [(one.kind, True, f"the other: {outputs.reason(one.copy_of)}")]
    return [(one.kind, False, "kept")]


def restored(one: Planted, text: str) -> float:
    """Of what the garbling had destroyed, the share that is there again."""
    destroyed = grams(one.clean) - grams(one.text)
    return len(destroyed & grams(text)) / len(destroyed) if destroyed else 1.0


def secret_verdict(one: Planted, secret: Secret, outputs: Outputs) -> tuple[bool, str]:
    key = (one.source, one.id)
    if key not in outputs.texts:
        return False, f"document lost: {outputs.reason(key)}"
    text = outputs.texts[key]
    if squeezed(secret.text) in squeezed(text):
        return False, f"kept: {secret.sentence}"
    lines = set(map(squeezed, text.splitlines()))  # a sentence was inserted as a line
    tokens = [token for token in PERSONAL_DATA_TOKENS if squeezed(secret.sentence.replace(secret.text, token)) in lines]
    if not tokens:
        return False, f"replaced in part, or more than it: {secret.sentence}"
    before = grams(one.clean)
    if len(before & grams(text)) < _INTACT * len(before):
        return False, "the rest of the document was damaged"
    return True, f"replaced by {secret.token if secret.token in tokens else tokens[0]}"


def squeezed(text: str) -> str:
    """Without white space, which steps may change."""
    return re.sub(r"\s+", "", text)


def grams(text: str) -> set[str]:
    """All successive characters by five, white space aside."""
    dense = squeezed(text)
    return {dense[place : place + _GRAM] for place in range(len(dense) - _GRAM + 1)}


# --- clean documents


def clean_rows(
    planted: list[Planted], inputs: dict[str, list[str]], outputs: Outputs, folder: Path
) -> list[dict[str, Any]]:
    """A row for each source, and one for all; and one for the copies that the real text itself has."""
    faulty = {(one.source, one.id) for one in planted}
    replaced = {one.copy_of for one in planted if one.copy_of and (one.source, one.id) in outputs.kept}
    clean = {source: [(source, name) for name in ids if (source, name) not in faulty] for source, ids in inputs.items()}
    gone = [key for keys in clean.values() for key in keys if key not in outputs.kept and key not in replaced]
    copies = copies_among({key for key in gone if outputs.reason(key).startswith(DUPLICATES)}, folder, outputs.kept)
    rows = []
    for source, keys in clean.items():
        lost = [key for key in gone if key[0] == source and key not in copies]
        rows.append(lost_row(source, lost, len(keys), outputs))
    every = sum(map(len, clean.values()))
    rows.append(row("copies in the real text itself", len(copies), every, None, Counter(), []))
    lost_in_all = len(gone) - len(copies)
    return [*rows, row("clean documents lost: all", lost_in_all, every, CLEAN_LOST_BAR, Counter(), [])]


def lost_row(source: str, lost: list[Key], clean: int, outputs: Outputs) -> dict[str, Any]:
    """Of one source."""
    listed = [{"source": source, "id": key[1], "how": outputs.reason(key)} for key in lost[:_LISTED]]
    by_reason = Counter(map(outputs.reason, lost))
    return row(f"clean documents lost: {source}", len(lost), clean, CLEAN_LOST_BAR, by_reason, listed)


def copies_among(suspects: set[Key], folder: Path, kept: set[Key]) -> set[Key]:
    """Those that are copies of a record that was kept: by comparing each with all, in plain Python."""
    texts: dict[Key, str] = {}
    for path in sorted((folder / SOURCES).glob("*.jsonl.gz")):
        source = path.name.removesuffix(".jsonl.gz")
        texts.update({(source, record["id"]): record["text"] for record in read_lines(path)})
    wanted = {key: grams(texts[key]) for key in suspects}
    found: set[Key] = set()
    for key in kept:
        size = len(texts[key])
        open_ones = [one for one in wanted if one not in found and _COPY < size / max(1, len(texts[one])) < 1 / _COPY]
        if not open_ones:
            continue
        theirs = grams(texts[key])
        found |= {one for one in open_ones if len(theirs & wanted[one]) >= _COPY * len(theirs | wanted[one])}
    return found


# --- rows


def row(
    name: str, part: int, whole: int, bar: float | None, how: Counter[str], listed: list[dict[str, Any]]
) -> dict[str, Any]:
    """In the shape of all benchmarks, with how often what happened, and cases to look at: no texts, since not all of
    the real ones may be passed on."""
    share = part / whole if whole else None
    return {
        "name": name,
        "unit": "share of documents",
        "ours": share,
        "peer": None,
        "peer_name": "",
        "ratio": None,
        "bar": bar,
        "holds": None if bar is None or share is None else share < bar,
        "reason": NO_PEER,
        "documents": part,
        "of": whole,
        "how": dict(how.most_common()),
        "cases": listed,
    }


def describe(one: dict[str, Any]) -> str:
    """A row for the terminal."""
    share = "-" if one["ours"] is None else f"{100 * one['ours']:.2f} %"
    verdict = {True: f"holds (under {one['bar']})", False: f"MISSED (bar {one['bar']})", None: ""}[one["holds"]]
    lines = [f"{one['name']:<70} {one['documents']:>7,} of {one['of']:>7,}  {share:>9}  {verdict}".rstrip()]
    lines += [f"    {count:>7,}  {how}" for how, count in one["how"].items()]
    if one["name"].startswith("caught") and one["cases"]:
        lines.append(f"    missed {len(one['cases']):,}, of which:")
        lines += [f"        {case['source']} {case['id']}: {case['how']}" for case in one["cases"][:_SHOWN]]
    return "\n".join(lines)
