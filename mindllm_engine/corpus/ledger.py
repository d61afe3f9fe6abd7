"""What became of every document of an input file: how many entered each step, how many it dropped and why, and examples
of each reason for a person to judge.

The steps of a task share one ledger. A task works on one document at a time and on one file after the other, so the
ledger is always that of the file being read; `build.py` writes it beside the file's output, and the report adds up all
of them. Adding up is exact and the choice of examples a matter of ids alone: neither depends on the number of tasks.
"""

import heapq
from dataclasses import dataclass, field
from typing import Any

import xxhash

# Of each reason.
EXAMPLES = 20
# Characters of a dropped text, from its beginning and from its end; of a detail, which may quote the text, likewise.
EXAMPLE_HEAD, EXAMPLE_TAIL = 600, 200
DETAIL_HEAD, DETAIL_TAIL = 200, 50


@dataclass(frozen=True)
class Drop:
    """Why a step drops a document.

    Attributes:
        reason: a few fixed words, the same for all documents dropped for this: "text density".
        detail: what was found in this one: "0.61 of 812 characters".
        excerpt: the part of the text to look at, where that is not its beginning and end.
    """

    reason: str
    detail: str = ""
    excerpt: str | None = None


@dataclass
class Reason:
    """Documents dropped for one reason.

    Attributes:
        examples: (hash, id, detail, excerpt) of those with the largest hashes of their ids: a random choice that all
            tasks make alike. A heap whose first element has the smallest of them. Hashes have 64 bits, unsigned: JSON
            as orjson writes it holds no smaller and no larger integers.
    """

    documents: int = 0
    chars: int = 0
    examples: list[tuple[int, str, str, str]] = field(default_factory=list)

    def add_example(self, example: tuple[int, str, str, str]) -> None:
        if len(self.examples) < EXAMPLES:
            heapq.heappush(self.examples, example)
        else:
            heapq.heappushpop(self.examples, example)


@dataclass
class StepEntry:
    """What a step did.

    Attributes:
        documents, chars: that entered it.
        dropped: by reason.
        counts: whatever else it counts, such as "phone numbers replaced".
    """

    documents: int = 0
    chars: int = 0
    dropped: dict[str, Reason] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


class Ledger:
    """See above. Steps in the order in which documents first reached them."""

    def __init__(self) -> None:
        self.steps: dict[str, StepEntry] = {}

    def clear(self) -> None:
        """Begin another file."""
        self.steps.clear()

    def step(self, name: str) -> StepEntry:
        return self.steps.setdefault(name, StepEntry())

    def enter(self, step: str, chars: int) -> None:
        """A document of so many characters enters a step."""
        entry = self.step(step)
        entry.documents += 1
        entry.chars += chars

    def drop(self, step: str, document_id: str, text: str, drop: Drop) -> None:
        """A step drops a document."""
        reason = self.step(step).dropped.setdefault(drop.reason, Reason())
        reason.documents += 1
        reason.chars += len(text)
        key = xxhash.xxh3_64_intdigest(f"{drop.reason} {document_id}".encode(errors="replace"))
        if len(reason.examples) < EXAMPLES or key >= reason.examples[0][0]:
            excerpt = abridged(text if drop.excerpt is None else drop.excerpt)
            detail = abridged(drop.detail, DETAIL_HEAD, DETAIL_TAIL)
            reason.add_example((key, writable(document_id), detail, excerpt))

    def count(self, step: str, what: str, number: int = 1) -> None:
        """Add to a step's own counter."""
        counts = self.step(step).counts
        counts[what] = counts.get(what, 0) + number

    def merge(self, other: "Ledger") -> None:
        """Add another file's ledger."""
        for name, theirs in other.steps.items():
            ours = self.step(name)
            ours.documents += theirs.documents
            ours.chars += theirs.chars
            for what, number in theirs.counts.items():
                ours.counts[what] = ours.counts.get(what, 0) + number
            for words, reason in theirs.dropped.items():
                own = ours.dropped.setdefault(words, Reason())
                own.documents += reason.documents
                own.chars += reason.chars
                for example in reason.examples:
                    own.add_example(example)

    def to_json(self) -> dict[str, Any]:
        """As plain data; examples in the order of their hashes."""
        return {
            name: {
                "documents": entry.documents,
                "chars": entry.chars,
                "counts": dict(sorted(entry.counts.items())),
                "dropped": {
                    words: {
                        "documents": reason.documents,
                        "chars": reason.chars,
                        "examples": [list(example) for example in sorted(reason.examples, reverse=True)],
                    }
                    for words, reason in sorted(entry.dropped.items())
                },
            }
            for name, entry in self.steps.items()
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Ledger":
        """What `to_json` gave."""
        ledger = cls()
        for name, entry in data.items():
            dropped = {}
            for words, reason in entry["dropped"].items():
                dropped[words] = Reason(reason["documents"], reason["chars"])
                for key, document_id, detail, excerpt in reason["examples"]:
                    dropped[words].add_example((key, document_id, detail, excerpt))
            ledger.steps[name] = StepEntry(entry["documents"], entry["chars"], dropped, dict(entry["counts"]))
        return ledger


def abridged(text: str, head: int = EXAMPLE_HEAD, tail: int = EXAMPLE_TAIL) -> str:
    """Beginning and end of a long text, so many characters of each."""
    if len(text) > head + tail:
        text = f"{text[:head]} […] {text[-tail:]}"
    return writable(text)


def writable(text: str) -> str:
    """The text with lone surrogates, which no file can hold, replaced: an error's message, or the name of a file that
    is not in UTF-8, may have some."""
    return text.encode(errors="replace").decode()
