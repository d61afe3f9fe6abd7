"""The sums of a corpus's ledgers by source and step, for its report (report.py), and whether they are right.

Every document that enters a step is either dropped there, for a reason, or enters the next one; what leaves the last
step is written. `inconsistencies` looks whether the ledgers and the written files say so, source by source, exactly.
"""

from dataclasses import dataclass, field
from itertools import pairwise

from mindllm_engine.corpus.corpus_files import Written
from mindllm_engine.corpus.ledger import EXAMPLES, Ledger, Reason


@dataclass(frozen=True)
class SourceReport:
    """What became of one source's documents.

    Attributes:
        stages: one ledger for each stage of the pipeline, in their order, over all files of the source.
        written_documents, written_chars, written_bytes: of the clean corpus; bytes of the texts in UTF-8.
        languages: the same by language ("": not known); empty where none are known.
        tokens: of the written documents, where an estimate is at hand.
    """

    name: str
    category: str
    stages: list[Ledger]
    written_documents: int
    written_chars: int
    written_bytes: int
    languages: dict[str, Written] = field(default_factory=dict)
    tokens: int | None = None


@dataclass
class StepFlow:
    """What passed through one step, of one source or of several.

    Attributes:
        stage: which of the ledgers it is in, from 1.
        entered, entered_chars: documents and characters.
        left_chars: that entered the next step, or were written after the last: a step may change the documents it
            keeps, so characters need not add up as documents do.
    """

    stage: int
    step: str
    entered: int = 0
    entered_chars: int = 0
    left_chars: int = 0
    dropped: dict[str, Reason] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def dropped_documents(self) -> int:
        return sum(reason.documents for reason in self.dropped.values())

    @property
    def left(self) -> int:
        """Documents."""
        return self.entered - self.dropped_documents

    @property
    def place(self) -> tuple[int, str]:
        return self.stage, self.step


@dataclass(frozen=True)
class Example:
    """A dropped document for a person to judge."""

    source: str
    id: str
    detail: str
    excerpt: str


@dataclass
class ReasonSummary:
    """One reason of one step, over all sources.

    Attributes:
        by_source: documents, most first.
        examples: a random choice of up to twenty.
    """

    stage: int
    step: str
    reason: str
    documents: int
    by_source: dict[str, int]
    examples: list[Example]


@dataclass
class TableRow:
    """A row of the paper's Table 1. `share` is of all bytes; `tokens` None where not all of its sources have them."""

    lang: str
    category: str
    documents: int = 0
    bytes: int = 0
    share: float = 0.0
    tokens: int | None = 0


UNKNOWN_LANGUAGE = "unknown"


def most_first(dropped: dict[str, Reason]) -> list[tuple[str, Reason]]:
    """Reasons by their documents."""
    return sorted(dropped.items(), key=lambda item: (-item[1].documents, item[0]))


def source_flow(source: SourceReport) -> list[StepFlow]:
    """The steps that any document of a source reached, in their order."""
    flows = [
        StepFlow(stage, name, entry.documents, entry.chars, 0, entry.dropped, entry.counts)
        for stage, ledger in enumerate(source.stages, 1)
        for name, entry in ledger.steps.items()
    ]
    for number, flow in enumerate(flows):
        flow.left_chars = flows[number + 1].entered_chars if number + 1 < len(flows) else source.written_chars
    return flows


def total_flow(sources: list[SourceReport]) -> list[StepFlow]:
    """All sources together. Examples are left out."""
    total: dict[tuple[int, str], StepFlow] = {place: StepFlow(*place) for place in step_places(sources)}
    for source in sources:
        for flow in source_flow(source):
            sums = total[flow.place]
            sums.entered += flow.entered
            sums.entered_chars += flow.entered_chars
            sums.left_chars += flow.left_chars
            for words, reason in flow.dropped.items():
                own = sums.dropped.setdefault(words, Reason())
                own.documents += reason.documents
                own.chars += reason.chars
            for what, number in flow.counts.items():
                sums.counts[what] = sums.counts.get(what, 0) + number
    return list(total.values())


def step_places(sources: list[SourceReport]) -> list[tuple[int, str]]:
    """(stage, step) of the whole pipeline. A source all of whose documents were dropped has the first steps alone, so
    those that have more of a stage's steps say their order."""
    places = []
    for stage in range(1, max((len(source.stages) for source in sources), default=0) + 1):
        ledgers = [source.stages[stage - 1] for source in sources if stage <= len(source.stages)]
        ledgers.sort(key=lambda ledger: -len(ledger.steps))
        names = dict.fromkeys(name for ledger in ledgers for name in ledger.steps)
        places += [(stage, name) for name in names]
    return places


def entered_documents(source: SourceReport) -> int:
    """Of the first step."""
    flows = source_flow(source)
    return flows[0].entered if flows else 0


def inconsistencies(source: SourceReport) -> list[str]:
    """Where a source's documents do not add up, a sentence each."""
    found = []
    flows = source_flow(source)
    for flow in flows:
        if flow.left < 0:
            found.append(
                f"{source.name}: step '{flow.step}' dropped {flow.dropped_documents:,} documents, of {flow.entered:,} "
                "that entered it"
            )
    for flow, after in pairwise(flows):
        if flow.left != after.entered:
            found.append(
                f"{source.name}: {flow.left:,} documents left step '{flow.step}', but {after.entered:,} entered "
                f"'{after.step}'"
            )
    left = flows[-1].left if flows else 0
    if left != source.written_documents:
        last = f"left the last step, '{flows[-1].step}'" if flows else "are in its ledgers"
        found.append(f"{source.name}: {left:,} documents {last}, but {source.written_documents:,} were written")
    total = (source.written_documents, source.written_chars, source.written_bytes)
    by_language = tuple(
        sum(getattr(written, key) for written in source.languages.values()) for key in ("documents", "chars", "bytes")
    )
    if source.languages and by_language != total:
        found.append(
            f"{source.name}: documents, characters and bytes by language add up to {by_language}, but {total} were "
            "written"
        )
    return found


def all_inconsistencies(sources: list[SourceReport]) -> list[str]:
    """Those of every source; empty if all sums are right."""
    return [sentence for source in sources for sentence in inconsistencies(source)]


def table_1(sources: list[SourceReport]) -> list[TableRow]:
    """The clean corpus by language and category, sorted."""
    parts: dict[tuple[str, str], TableRow] = {}
    total = sum(source.written_bytes for source in sources)
    for source in sources:
        whole = Written(source.written_documents, source.written_chars, source.written_bytes)
        for known, written in (source.languages or {"": whole}).items():
            lang = known or UNKNOWN_LANGUAGE
            row = parts.setdefault((lang, source.category), TableRow(lang, source.category))
            row.documents += written.documents
            row.bytes += written.bytes
            row.share = row.bytes / total if total else 0.0
            if source.tokens is None or row.tokens is None:
                row.tokens = None
            elif source.written_bytes:
                # An estimate for a source of several languages is shared out by their bytes.
                row.tokens += round(source.tokens * written.bytes / source.written_bytes)
    return [parts[key] for key in sorted(parts)]


def reason_summaries(sources: list[SourceReport]) -> list[ReasonSummary]:
    """Each reason of each step, in the order of steps, most documents first; with examples of all sources.

    A ledger keeps the documents with the largest hashes, so the largest of all sources' are again a random choice.
    """
    found: dict[tuple[int, str, str], ReasonSummary] = {}
    candidates: dict[tuple[int, str, str], list[tuple[int, Example]]] = {}
    for source in sources:
        for stage, ledger in enumerate(source.stages, 1):
            for step, entry in ledger.steps.items():
                for words, reason in entry.dropped.items():
                    key = (stage, step, words)
                    summary = found.setdefault(key, ReasonSummary(stage, step, words, 0, {}, []))
                    summary.documents += reason.documents
                    summary.by_source[source.name] = summary.by_source.get(source.name, 0) + reason.documents
                    candidates.setdefault(key, []).extend(
                        (number, Example(source.name, *rest)) for number, *rest in reason.examples
                    )
    for key, summary in found.items():
        candidates[key].sort(key=lambda pair: (-pair[0], pair[1].id))
        summary.examples = [example for _, example in candidates[key][:EXAMPLES]]
        summary.by_source = dict(sorted(summary.by_source.items(), key=lambda item: (-item[1], item[0])))
    order = {place: number for number, place in enumerate(step_places(sources))}
    return sorted(found.values(), key=lambda one: (order[one.stage, one.step], -one.documents, one.reason))
