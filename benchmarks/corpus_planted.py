"""Which faults of web pages does the corpus pipeline catch, and how many clean documents does it lose?

    python benchmarks/corpus_planted.py plant FOLDER [--data ../shared/data] [--words FILE] [--share 0.05] [--seed 0]
    ... build a corpus of FOLDER/pretrain/*.jsonl.gz, a source a file, decontaminated with the data's eval folder ...
    python benchmarks/corpus_planted.py score FOLDER CORPUS [--json FILE]

Real text is taken as clean, and faults are planted in it, 5 % of its documents: some clean documents are made faulty
where they stand (read with the wrong encoding, with personal data, with words of a list, with items of a benchmark),
and faulty ones are put between them (copies, advertisements, empty pages, repetition). FOLDER/truth.jsonl.gz says
which.

How faults are made: corpus_planted_faults.py. What counts as caught: corpus_planted_score.py.
"""

import argparse
import gzip
import itertools
import json
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import corpus_planted_faults as faults
from benchmarks.corpus_planted_faults import Secret

ROOT = Path(__file__).parent.parent
SOURCES, TRUTH = "pretrain", "truth.jsonl.gz"
# In turn, so that each has as many documents.
FAULTS = (
    "mojibake", "advertisement", "duplicate", "near-duplicate", "personal data", "sensitive words", "tiny page",
    "self-repetition", "benchmark item",
)  # fmt: skip
EDIT_RATES = (0.01, 0.03, 0.05)
# The least that a clean document must have for a fault to be one: Chinese characters to be garbled, other characters
# beyond ASCII likewise, characters around personal data, words and benchmark items, so that nobody drops it as short.
GARBLED_HAN, GARBLED_OTHER, ROOMY, ROOMY_HAN = 30, 5, 200, 120
SHORT = 200

Record = dict[str, Any]


@dataclass(frozen=True)
class Planted:
    """A faulty document.

    Attributes:
        source: in which it stands.
        id: of its record.
        fault: one of FAULTS.
        kind: the fault more exactly: "mojibake: utf-8 as gbk (zh)".
        text: of the faulty document.
        clean: the text it was made of, where the fault may be mended; else empty.
        in_place: it stands in place of a clean document and has its id.
        copy_of: source and id of the document that it is a copy of, for duplicates.
        secrets: personal data that was put in.
    """

    source: str
    id: str
    fault: str
    kind: str
    text: str
    clean: str = ""
    in_place: bool = False
    copy_of: tuple[str, str] | None = None
    secrets: tuple[Secret, ...] = ()


@dataclass(frozen=True)
class Item:
    """An item of an evaluation file.

    Attributes:
        where: "mmlu_test.jsonl.gz:17", from 1.
    """

    where: str
    text: str


# --- what is there to plant in, and with


def read_lines(path: Path) -> Iterator[Record]:
    with gzip.open(path, "rb") as file:
        yield from map(orjson.loads, file)


def read_clean(folder: Path) -> dict[str, list[Record]]:
    """The records of each source, a file each, by its name."""
    return {path.name.removesuffix(".jsonl.gz"): list(read_lines(path)) for path in sorted(folder.glob("*.jsonl.gz"))}


def read_items(folder: Path) -> dict[str, list[Item]]:
    """Items of evaluation files by language: question, choices and answer as a page that quotes them has them. Items
    of one line that could stand anywhere are left out (under 60 characters; Chinese, 20)."""
    items: dict[str, list[Item]] = {"zh": [], "en": []}
    for name, lang in (("cmmlu_test", "zh"), ("mmlu_test", "en"), ("gsm8k_test", "en"), ("hellaswag_val", "en")):
        path = folder / f"{name}.jsonl.gz"
        if not path.exists():
            continue
        for number, record in enumerate(read_lines(path), 1):
            question = record.get("question") or record["context"]
            lines = [question]
            if choices := record.get("choices"):
                lines += [f"{letter}. {choice}" for letter, choice in zip("ABCDEFGH", choices, strict=False)]
            if endings := record.get("endings"):
                lines = [f"{question} {endings[record['label']]}"]
            elif answer := record.get("answer"):
                lines.append(f"{'答案：' if lang == 'zh' else 'Answer: '}{answer}")
            if len(question) >= (20 if lang == "zh" else 60):
                items[lang].append(Item(f"{path.name}:{number}", "\n".join(lines)))
    return items


def read_words(path: Path | None) -> dict[str, list[str]]:
    """The words of a vocabulary by language; what stands behind a tab, and lines that begin with #, do not count."""
    words: dict[str, list[str]] = {"zh": [], "en": []}
    lines = path.read_text(encoding="utf-8").splitlines() if path else []
    for line in lines:
        word = line.split("\t")[0].strip()
        if word and not line.startswith("#"):
            words["zh" if han(word) else "en"].append(word)
    return words


def han(text: str) -> int:
    """Chinese characters."""
    return len(re.findall("[\u4e00-\u9fff]", text))


# --- planting


def plant(
    documents: Mapping[str, Sequence[Record]],
    items: Mapping[str, Sequence[Item]],
    words: Mapping[str, Sequence[str]],
    share: float = 0.05,
    seed: int = 0,
) -> list[Planted]:
    """So many faulty documents for each source, as a share of its documents.

    Where a source has no document that a fault fits (a page in ASCII cannot be garbled), or there are no items or
    words, an advertisement takes its place.
    """
    planted: list[Planted] = []
    for number, source in enumerate(sorted(documents)):
        planter = Planter(source, documents, items, words, random.Random(f"{seed} {source}"))
        turns = round(share * len(documents[source]))
        planted += [planter.make(FAULTS[(turn + number) % len(FAULTS)], turn) for turn in range(turns)]
    return planted


def in_turns(items: Sequence[Item], chooser: random.Random) -> list[Item]:
    """Shuffled, and such that those popped from the end are from each evaluation file in turn."""
    turns: Counter[str] = Counter()
    ordered = []
    for item in chooser.sample(items, len(items)):
        name = item.where.partition(":")[0]
        turns[name] += 1
        ordered.append((-turns[name], name, item))
    return [item for *_, item in sorted(ordered, key=lambda one: one[:2])]


class Planter:
    """Plants in one source; no clean document serves twice."""

    def __init__(
        self,
        source: str,
        documents: Mapping[str, Sequence[Record]],
        items: Mapping[str, Sequence[Item]],
        words: Mapping[str, Sequence[str]],
        chooser: random.Random,
    ) -> None:
        self.source, self.chooser = source, chooser
        self.lang = documents[source][0]["lang"] if documents[source] else "en"
        self.hosts = list(documents[source])
        self.words = words.get(self.lang, ())
        # Copies go into this source or another one of its language.
        self.others = sorted(name for name in documents if documents[name] and documents[name][0]["lang"] == self.lang)
        chooser.shuffle(self.hosts)
        self.items = in_turns(items.get(self.lang, ()), chooser)
        kinds = faults.MOJIBAKE_ZH if self.lang == "zh" else faults.MOJIBAKE_EN
        self.mojibake_kinds = itertools.cycle(chooser.sample(kinds, len(kinds)))
        self.makers: dict[str, Callable[[str], Planted | None]] = {
            "mojibake": self.mojibake,
            "duplicate": self.duplicate,
            "near-duplicate": self.near_duplicate,
            "personal data": self.personal_data,
            "sensitive words": self.sensitive_words,
            "tiny page": self.tiny_page,
            "self-repetition": self.self_repetition,
            "benchmark item": self.benchmark_item,
            "advertisement": self.advertisement,
        }

    def make(self, fault: str, turn: int) -> Planted:
        """One faulty document; `turn` tells those of a source apart."""
        own_id = f"{self.source}/page/{turn}"
        return self.makers[fault](own_id) or self.advertisement(own_id)

    def host(self, fits: Callable[[str], bool]) -> Record | None:
        """A clean document that nothing has been done with."""
        for place, record in enumerate(self.hosts):
            if fits(record["text"]):
                return self.hosts.pop(place)
        return None

    def roomy_host(self) -> Record | None:
        zh = self.lang == "zh"
        return self.host(lambda text: len(text) >= ROOMY and (not zh or han(text) >= ROOMY_HAN))

    def mojibake(self, _: str) -> Planted | None:
        zh = self.lang == "zh"

        def fits(text: str) -> bool:
            return han(text) >= GARBLED_HAN if zh else len(re.findall(r"[^\x00-\x7f]", text)) >= GARBLED_OTHER

        if not (host := self.host(fits)):
            return None
        kind = next(self.mojibake_kinds)
        text = faults.mojibake(host["text"], kind)
        return self.in_place(host, "mojibake", f"mojibake: {kind} ({self.lang})", text, host["text"])

    def personal_data(self, _: str) -> Planted | None:
        if not (host := self.roomy_host()):
            return None
        text, secrets = faults.with_secrets(host["text"], self.lang, self.chooser)
        return self.in_place(host, "personal data", "personal data", text, host["text"], secrets)

    def sensitive_words(self, _: str) -> Planted | None:
        if not self.words or not (host := self.roomy_host()):
            return None
        text = faults.with_words(host["text"], self.words, self.lang, self.chooser)
        return self.in_place(host, "sensitive words", f"sensitive words ({self.lang})", text)

    def benchmark_item(self, _: str) -> Planted | None:
        if not self.items or not (host := self.roomy_host()):
            return None
        item = self.items.pop()
        text = faults.inserted(host["text"], [item.text], self.chooser)
        return self.in_place(host, "benchmark item", f"benchmark item: {item.where.partition('.')[0]}", text)

    def in_place(
        self, host: Record, fault: str, kind: str, text: str, clean: str = "", secrets: tuple[Secret, ...] = ()
    ) -> Planted:
        return Planted(self.source, host["id"], fault, kind, text, clean, in_place=True, secrets=secrets)

    def duplicate(self, own_id: str) -> Planted | None:
        if not (host := self.host(lambda text: bool(text.strip()))):
            return None
        return self.copied(own_id, host, "duplicate", "duplicate", host["text"])

    def near_duplicate(self, own_id: str) -> Planted | None:
        if not (host := self.host(lambda text: len(text.split()) > 1 or len(text.strip()) > 20)):
            return None
        rate = self.chooser.choice(EDIT_RATES)
        text = faults.edited(host["text"], rate, self.lang, self.chooser)
        size = f"under {SHORT} characters" if len(host["text"]) < SHORT else "longer"
        return self.copied(own_id, host, "near-duplicate", f"near-duplicate: {rate:.0%} edited, {size}", text)

    def copied(self, own_id: str, host: Record, fault: str, kind: str, text: str) -> Planted:
        source = self.source if self.chooser.random() < 0.5 else self.chooser.choice(self.others)
        where = "within a source" if source == self.source else "over sources"
        return Planted(source, own_id, fault, f"{kind}, {where}", text, copy_of=(self.source, host["id"]))

    def advertisement(self, own_id: str) -> Planted:
        text = faults.advertisement(self.lang, self.chooser)
        return Planted(self.source, own_id, "advertisement", f"advertisement ({self.lang})", text)

    def tiny_page(self, own_id: str) -> Planted:
        text = faults.tiny_page(self.lang, self.chooser)
        return Planted(self.source, own_id, "tiny page", f"tiny page ({self.lang})", text)

    def self_repetition(self, own_id: str) -> Planted | None:
        texts = [record["text"] for record in self.chooser.sample(self.hosts, min(20, len(self.hosts)))]
        texts = [text for text in texts if len(text) >= 60]
        if not texts:
            return None
        how = self.chooser.choice(["repeated phrase", "duplicated lines"])
        maker = faults.repeated_phrase if how == "repeated phrase" else faults.duplicated_lines
        text = maker(texts[0], self.lang, self.chooser)
        return Planted(self.source, own_id, "self-repetition", f"self-repetition: {how} ({self.lang})", text)


# --- files


def write_corpus(
    documents: Mapping[str, Sequence[Record]], planted: Sequence[Planted], folder: Path, seed: int = 0
) -> None:
    """FOLDER/pretrain/<source>.jsonl.gz with the faulty documents in their places or at random ones, and the truth."""
    (folder / SOURCES).mkdir(parents=True, exist_ok=True)
    for source, records in documents.items():
        own = [one for one in planted if one.source == source]
        changed = {one.id: one.text for one in own if one.in_place}
        lines = [{**record, "text": changed.get(record["id"], record["text"])} for record in records]
        chooser = random.Random(f"{seed} places in {source}")
        for one in own:
            if not one.in_place:
                more = {"lang": records[0]["lang"], "category": records[0]["category"]}
                lines.insert(chooser.randint(0, len(lines)), {"id": one.id, "text": one.text, **more})
        write_lines(folder / SOURCES / f"{source}.jsonl.gz", lines)
    write_lines(folder / TRUTH, map(asdict, planted))


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """The same bytes for the same records."""
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as file:
        for record in records:
            file.write(orjson.dumps(record) + b"\n")


def read_truth(folder: Path) -> list[Planted]:
    """What was planted."""
    planted = []
    for record in read_lines(folder / TRUTH):
        record["secrets"] = tuple(Secret(**secret) for secret in record["secrets"])
        record["copy_of"] = tuple(record["copy_of"]) if record["copy_of"] else None
        planted.append(Planted(**record))
    return planted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    planting = commands.add_parser("plant", help="write the sources with faults, and the truth")
    planting.add_argument("folder", type=Path)
    default_data = Path(os.environ.get("MINDLLM_DATA", ROOT / ".." / "shared" / "data"))
    planting.add_argument("--data", type=Path, default=default_data, help="folder of pretrain and eval")
    planting.add_argument("--words", type=Path, help="vocabulary of sensitive words, one a line; none: not planted")
    planting.add_argument("--share", type=float, default=0.05, help="of faulty documents (default 0.05)")
    planting.add_argument("--seed", type=int, default=0)
    scoring = commands.add_parser("score", help="say what became of the faults in a corpus")
    scoring.add_argument("folder", type=Path)
    scoring.add_argument("corpus", type=Path, help="`dir` of the corpus")
    scoring.add_argument("--json", type=Path, help="write the rows here as well")
    arguments = parser.parse_args()
    if arguments.command == "plant":
        documents = read_clean(arguments.data / "pretrain")
        items, words = read_items(arguments.data / "eval"), read_words(arguments.words)
        planted = plant(documents, items, words, arguments.share, arguments.seed)
        write_corpus(documents, planted, arguments.folder, arguments.seed)
        print(f"{len(planted):,} faulty documents in {sum(map(len, documents.values())):,}: {arguments.folder}")
        return 0
    from benchmarks.corpus_planted_score import describe, score

    rows = score(arguments.folder, arguments.corpus)
    print("\n".join(map(describe, rows)))
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
