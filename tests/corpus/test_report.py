"""The report against a plain count of documents, its page read back by an HTML parser, and sums that are wrong."""

import html.parser
import random
import stat
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindllm_engine.corpus.corpus_files import Written
from mindllm_engine.corpus.ledger import Drop, Ledger
from mindllm_engine.corpus.report import SourceReport, corpus_report
from mindllm_engine.errors import DataError

# Of two stages.
STEPS = [(1, "read"), (1, "cleaning"), (1, "quality"), (2, "duplicates"), (2, "words")]
REASONS = ["too short", "text density", "<b>odd</b> & reason"]
SOURCES = ["zh_book", "en_web", "zh_web", "en_code"]
VOID = {"meta", "rect", "br", "link", "img", "input", "hr"}
# What the page is made of; anything else would have come out of a text.
OURS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "b", "code", "sup", "br", "ul", "li"}
OURS |= {"table", "thead", "tbody", "tr", "th", "td", "div", "svg", "rect", "details", "summary"}


@dataclass(frozen=True)
class Page:
    """A document of a test: the step that drops it (or none), why, and what the steps make of its text."""

    source: str
    dropped_by: int | None
    reason: str
    text: str
    grows: int


pages = st.lists(
    st.builds(
        Page,
        st.sampled_from(SOURCES),
        st.none() | st.integers(0, len(STEPS) - 1),
        st.sampled_from(REASONS),
        st.text(max_size=20),
        st.integers(0, 2),
    ),
    max_size=80,
)


def texts_of(page: Page) -> list[str]:
    """As each step finds it, and as it is written at last: some steps add to it."""
    return [page.text + "x" * (page.grows * number) for number in range(len(STEPS) + 1)]


def play(numbered: list[tuple[int, Page]]) -> list[Ledger]:
    """The ledgers of both stages for one file."""
    stages = [Ledger(), Ledger()]
    for number, page in numbered:
        for place, (stage, step) in enumerate(STEPS):
            ledger = stages[stage - 1]
            text = texts_of(page)[place]
            ledger.enter(step, len(text))
            if page.dropped_by == place:
                ledger.drop(step, f"{page.source}/f:{number}", text, Drop(page.reason, f"detail of {number}"))
                break
            if page.grows:
                ledger.count(step, "texts <grown>", page.grows)
    return [Ledger.from_json(orjson.loads(orjson.dumps(ledger.to_json()))) for ledger in stages]


def source_report(name: str, documents: list[Page], files: int = 1, chooser: random.Random | None = None) -> Any:
    own = [(number, page) for number, page in enumerate(documents) if page.source == name]
    if chooser:
        chooser.shuffle(own)
    parts = [play(own[number::files]) for number in range(files)]
    if chooser:
        chooser.shuffle(parts)
    stages = [Ledger(), Ledger()]
    for part in parts:
        for stage, ledger in zip(stages, part, strict=True):
            stage.merge(ledger)
    written = [texts_of(page)[-1] for _, page in own if page.dropped_by is None]
    size = sum(len(text.encode()) for text in written)
    return SourceReport(name, name[3:], stages, len(written), sum(map(len, written)), size)


def report(sources: list[SourceReport], folder: Path) -> tuple[dict[str, Any], "Parsed"]:
    """The JSON and the parsed page."""
    path = folder / "report.html"
    corpus_report(sources, path)
    parsed = Parsed()
    parsed.feed(path.read_text(encoding="utf-8"))
    parsed.close()
    assert parsed.open == [], "every element is closed"
    return orjson.loads((folder / "report.json").read_bytes()), parsed


@dataclass
class Example:
    head: str = ""
    text: str = ""


class Parsed(html.parser.HTMLParser):
    """Elements, tables as rows of texts under the heading before them, and examples by the summary above them."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, str]] = []
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.heading = ""
        self.summary = ""
        self.tables: dict[str, list[list[str]]] = {}
        self.examples: dict[str, list[Example]] = {}
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {key: value or "" for key, value in attrs}
        self.tags[tag] += 1
        self.attributes |= set(attributes)
        kind = attributes.get("class", "")
        if tag not in VOID:
            self.open.append((tag, kind))
        if tag in ("h2", "h3"):
            self.heading = ""
        elif tag == "tr":
            self.tables.setdefault(self.heading, []).append([])
        elif tag in ("td", "th"):
            self.tables[self.heading][-1].append("")
        elif tag == "summary":
            self.summary = ""
        elif kind == "example":
            self.examples.setdefault(self.summary, []).append(Example())

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tags = {tag for tag, _ in self.open}
        kinds = [kind for _, kind in self.open]
        if "style" not in tags:
            self.text += data
        if tags & {"h2", "h3"}:
            self.heading += data
        elif tags & {"td", "th"}:
            self.tables[self.heading][-1][-1] += data
        elif "summary" in tags:
            self.summary += data
        elif "excerpt" in kinds:
            self.examples[self.summary][-1].text += data
        elif "example" in kinds:
            self.examples[self.summary][-1].head += data


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pages)
def test_sums_are_those_of_a_plain_count(tmp_path: Path, documents: list[Page]) -> None:
    found, parsed = report([source_report(name, documents) for name in SOURCES], tmp_path)
    assert found["warnings"] == []
    assert "These sums are wrong" not in parsed.text
    for name, part in [(one["name"], one) for one in found["sources"]] + [("", found["all_sources"])]:
        own = [page for page in documents if name in ("", page.source)]
        written = [texts_of(page)[-1] for page in own if page.dropped_by is None]
        assert part["entered_documents"] == len(own)
        assert part["written_documents"] == len(written)
        assert part["written_bytes"] == len("".join(written).encode())
        steps = {(flow["stage"], flow["step"]): flow for flow in part["steps"]}
        assert list(steps) == STEPS[: len(steps)]
        for place, key in enumerate(STEPS):
            entered = [page for page in own if page.dropped_by is None or page.dropped_by >= place]
            left = [page for page in entered if page.dropped_by != place]
            if not entered:
                assert key not in steps
                continue
            flow = steps[key]
            assert (flow["entered_documents"], flow["left_documents"]) == (len(entered), len(left))
            assert flow["entered_chars"] == sum(len(texts_of(page)[place]) for page in entered)
            assert flow["left_chars"] == sum(len(texts_of(page)[place + 1]) for page in left)
            reasons = Counter(page.reason for page in entered if page.dropped_by == place)
            assert {words: counts["documents"] for words, counts in flow["dropped"].items()} == reasons
            grown = sum(page.grows for page in left)
            assert flow["counts"] == ({"texts <grown>": grown} if grown else {})
    dropped = Counter((*STEPS[p.dropped_by], p.reason) for p in documents if p.dropped_by is not None)
    assert {(r["stage"], r["step"], r["reason"]): r["documents"] for r in found["reasons"]} == dropped


def test_the_page_shows_the_sums(tmp_path: Path) -> None:
    chooser = random.Random(0)
    documents = [
        Page(
            chooser.choice(SOURCES),
            chooser.choice([None, None, *range(len(STEPS))]),
            chooser.choice(REASONS),
            "文" * chooser.randrange(5, 2000),
            chooser.randrange(2),
        )
        for _ in range(4000)
    ]
    _, parsed = report([source_report(name, documents) for name in SOURCES], tmp_path)
    for name in SOURCES:
        own = [page for page in documents if page.source == name]
        rows = parsed.tables[f"{name} ({name[3:]})"][1:]
        at = 0
        for place, (_, step) in enumerate(STEPS):
            entered = [page for page in own if page.dropped_by is None or page.dropped_by >= place]
            reasons = Counter(page.reason for page in entered if page.dropped_by == place)
            gone = sum(reasons.values())
            assert rows[at][0] == step
            assert rows[at][2:4] == [f"{len(entered):,}", f"{gone:,}"]
            assert rows[at][5] == f"{len(entered) - gone:,}"
            named = {row[1]: row[3] for row in rows[at + 1 : at + 1 + len(reasons)]}
            assert named == {words: f"{count:,}" for words, count in reasons.items()}
            at += 1 + len(reasons)
        assert at == len(rows)
    picture = parsed.tables["What is left after each step"]
    assert [row[0] for row in picture[1:]] == [
        f"{name}{sum(page.source == name for page in documents):,}" for name in SOURCES
    ] + ["all sources4,000"]
    left = sum(page.dropped_by is None for page in documents)
    assert picture[-1][-1].startswith(f"{100 * left / 4000:.2f} %")
    grown = parsed.tables["What the steps counted"]
    assert grown[1][:2] == ["read", "texts <grown>"]
    assert int(grown[1][3].replace(",", "")) == sum(page.grows for page in documents if page.dropped_by != 0)


def test_twenty_examples_of_each_reason_marked_by_source(tmp_path: Path) -> None:
    documents = [Page(SOURCES[number % 3], 1, "too short", f"text {number}", 0) for number in range(900)]
    documents += [Page("en_code", 2, "text density", f"text {number}", 0) for number in range(7)]
    found, parsed = report([source_report(name, documents) for name in SOURCES], tmp_path)
    many, few = found["reasons"]
    assert [len(reason["examples"]) for reason in (many, few)] == [20, 7]
    assert many["by_source"] == dict.fromkeys(sorted(SOURCES[:3]), 300)
    assert len({example["id"] for example in many["examples"]}) == 20
    assert len({example["source"] for example in many["examples"]}) > 1, "of all sources"
    for example in many["examples"]:
        number = int(example["id"].rpartition(":")[2])
        assert example["source"] == documents[number].source == example["id"].partition("/")[0]
        assert (example["excerpt"], example["detail"]) == (f"text {number}", f"detail of {number}")
    shown = {summary: examples for summary, examples in parsed.examples.items() if "too short" in summary}
    ((summary, examples),) = shown.items()
    assert summary.startswith("cleaning: too short – 900 documents (en_web 300, ")
    assert [example.text for example in examples] == [example["excerpt"] for example in many["examples"]]
    for on_page, in_json in zip(examples, many["examples"], strict=True):
        assert on_page.head == f"{in_json['source']} {in_json['id']} – {in_json['detail']}"


@pytest.mark.parametrize(("files", "seed"), [(1, 1), (2, 2), (7, 3), (50, 4)])
def test_order_and_partition_into_files_change_nothing(tmp_path: Path, files: int, seed: int) -> None:
    chooser = random.Random(0)
    documents = [
        Page(chooser.choice(SOURCES), chooser.choice([None, *range(len(STEPS))]), chooser.choice(REASONS), "text", 1)
        for _ in range(800)
    ]
    corpus_report([source_report(name, documents) for name in SOURCES], tmp_path / "one.html")
    corpus_report(
        [source_report(name, documents, files, random.Random(seed)) for name in SOURCES], tmp_path / "other.html"
    )
    for suffix in (".html", ".json"):
        one, other = (tmp_path / f"{name}{suffix}" for name in ("one", "other"))
        assert one.stat().st_size > 1000
        assert one.read_bytes() == other.read_bytes()


HOSTILE = [
    "<script>alert(1)</script>",
    "</div></div></details></body></html><script src=//evil.example/x.js></script>",
    "<img src=x onerror=alert(1)>",
    "\" onmouseover='alert(1)' x=\"",
    "<!-- ", "-->", "<![CDATA[", "]]>", "<?php", "</style>", "<style>*{display:none}</style>",
    "&lt;script&gt; &amp;amp; &#60;b&#62; &nbsp &copy",
    "<svg onload=alert(1)>", "<base href=//evil.example>", "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "\n\n  leading and trailing space \n",
    "\u202eright to left\u2066 isolates", "é\u0301\ufeff\ufffe\U0010ffff",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(tmp_path: Path, text: str) -> None:
    ledger = Ledger()
    ledger.enter("low quality", len(text))
    ledger.drop("low quality", f"web/{text}:0", text, Drop(f"reason {text}", f"detail {text}"))
    ledger.count("low quality", f"counter {text}", 3)
    found, parsed = report([SourceReport(f"name {text}", f"category {text}", [ledger], 0, 0, 0)], tmp_path)
    assert found["warnings"] == []
    assert set(parsed.tags) <= OURS
    assert not any(name.startswith("on") or name in ("href", "src", "style") for name in parsed.attributes)
    assert parsed.tags["style"] == 1
    ((summary, (example,)),) = parsed.examples.items()
    assert example.text == text
    assert example.head == f"name {text} web/{text}:0 – detail {text}"
    assert summary.startswith(f"low quality: reason {text} – 1 documents (name {text} 1)")
    assert parsed.tables["What the steps counted"][1] == ["low quality", f"counter {text}", f"name {text} 3", "3"]
    policy = "default-src 'none'"
    assert policy in (tmp_path / "report.html").read_text(encoding="utf-8").split("</head>")[0]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_browsers_parser_sees_the_same(tmp_path: Path, text: str) -> None:
    """One that mends what is broken as HTML5 says, and might make an element where html.parser sees none."""
    resiliparse = pytest.importorskip("resiliparse.parse.html", reason="the extra [corpus] is not installed")
    ledger = Ledger()
    ledger.enter("read", len(text))
    ledger.drop("read", f"web/{text}:0", text, Drop(f"reason {text}", f"detail {text}"))
    corpus_report([SourceReport(f"name {text}", f"category {text}", [ledger], 0, 0, 0)], tmp_path / "report.html")
    tree = resiliparse.HTMLTree.parse((tmp_path / "report.html").read_text(encoding="utf-8"))
    (excerpt,) = tree.document.query_selector_all(".excerpt")
    assert excerpt.text == text
    assert {node.tag for node in tree.document.query_selector_all("*")} <= OURS
    (details,) = tree.document.query_selector_all("body > details")
    assert details.contains(excerpt)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(), max_size=40))
def test_any_text_is_shown_as_it_is(tmp_path: Path, text: str) -> None:
    """But for control characters, which HTML cannot hold, and lone surrogates, which no file can."""
    ledger = Ledger()
    ledger.enter("read", len(text))
    ledger.drop("read", "a:0", text, Drop("reason"))
    _, parsed = report([SourceReport("web", "web", [ledger], 0, 0, 0)], tmp_path)
    ((example,),) = parsed.examples.values()
    assert len(example.text) == len(text)
    for character, seen in zip(text, example.text, strict=True):
        if unicodedata.category(character) == "Cs":
            assert seen == "?"
        elif unicodedata.category(character) == "Cc" and character not in "\n\t":
            assert seen == (
                chr(0x2400 + ord(character)) if character < " " else "␡" if character == "\x7f" else "\ufffd"
            )
        else:
            assert seen == character


def chain(*entered: int) -> Ledger:
    """Steps that so many documents enter and none leaves before the end."""
    ledger = Ledger()
    for number, count in enumerate(entered):
        for _ in range(count):
            ledger.enter(f"step {number}", 10)
    return ledger


def overdrawn() -> Ledger:
    ledger = chain(1)
    for number in range(3):
        ledger.drop("step 0", f"a:{number}", "", Drop("reason"))
    return ledger


@dataclass
class Wrong:
    stages: list[Ledger]
    written: int
    says: str
    languages: dict[str, Written] = field(default_factory=dict)


WRONG = {
    "lost between steps": Wrong([chain(5, 4)], 4, "5 documents left step 'step 0', but 4 entered 'step 1'"),
    "lost between stages": Wrong([chain(5), chain(6)], 6, "5 documents left step 'step 0', but 6 entered"),
    "not written": Wrong([chain(5)], 3, "5 documents left the last step, 'step 0', but 3 were written"),
    "written twice": Wrong([chain(5)], 10, "but 10 were written"),
    "more dropped than entered": Wrong([overdrawn()], 0, "dropped 3 documents, of 1 that entered it"),
    "no ledger": Wrong([], 2, "0 documents are in its ledgers, but 2 were written"),
    "languages": Wrong([chain(2)], 2, "by language add up to (1, 0, 0)", {"zh": Written(1, 0, 0)}),
}


@pytest.mark.parametrize("case", WRONG)
def test_sums_that_are_wrong_are_said_clearly(tmp_path: Path, case: str) -> None:
    wrong = WRONG[case]
    sources = [
        SourceReport("good", "web", [chain(3)], 3, 30, 30),
        SourceReport("bad", "web", wrong.stages, wrong.written, 0, 0, wrong.languages),
    ]
    found, parsed = report(sources, tmp_path)
    assert all(sentence.startswith("bad: ") for sentence in found["warnings"])
    assert any(wrong.says in sentence for sentence in found["warnings"])
    assert parsed.text.index("These sums are wrong") < parsed.text.index("The clean corpus")
    assert all(sentence in parsed.text for sentence in found["warnings"])
    assert "All sums were checked" not in parsed.text


def test_table_1_is_by_language_and_category(tmp_path: Path) -> None:
    def source(name: str, category: str, tokens: int | None, **languages: Written) -> SourceReport:
        totals = [sum(getattr(part, key) for part in languages.values()) for key in ("documents", "chars", "bytes")]
        return SourceReport(name, category, [chain(totals[0])], *totals, languages, tokens)

    gb = 10**9
    sources = [
        source("web_1", "webtext", 1000, zh=Written(4, 4, 3 * gb), en=Written(1, 4, gb)),
        source("web_2", "webtext", 300, zh=Written(6, 6, 3 * gb)),
        source("books", "book", None, zh=Written(2, 2, gb)),
    ]
    found, parsed = report(sources, tmp_path)
    assert found["warnings"] == []
    assert [tuple(row.values()) for row in found["table_1"]] == [
        ("en", "webtext", 1, gb, 1 / 8, 250),
        ("zh", "book", 2, gb, 1 / 8, None),
        ("zh", "webtext", 10, 6 * gb, 6 / 8, 1050),
    ]
    assert parsed.tables["The clean corpus"] == [
        ["language", "category", "documents", "size (GB)", "share", "tokens (estimate)"],
        ["en", "webtext", "1", "1.00", "12.50 %", "250"],
        ["en", "all", "1", "1.00", "12.50 %", "250"],
        ["zh", "book", "2", "1.00", "12.50 %", "–"],
        ["zh", "webtext", "10", "6.00", "75.00 %", "1,050"],
        ["zh", "all", "12", "7.00", "87.50 %", "–"],
        ["all", "all", "13", "8.00", "100.00 %", "–"],
    ]


def test_without_languages_and_tokens_the_table_says_so(tmp_path: Path) -> None:
    sources = [
        SourceReport("web", "webtext", [chain(2)], 2, 20, 4_000_000),
        SourceReport("more", "webtext", [chain(1)], 1, 10, 1_000_000, {"": Written(1, 10, 1_000_000)}),
    ]
    found, parsed = report(sources, tmp_path)
    assert len(found["table_1"]) == 1
    assert found["table_1"][0]["lang"] == "unknown"
    assert parsed.tables["The clean corpus"][:2] == [
        ["language", "category", "documents", "size (GB)", "share"],
        ["unknown", "webtext", "3", "0.005", "100.00 %"],
    ]


def test_a_single_document_of_many_is_not_rounded_away(tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.step("step").documents = 1_000_000
    ledger.drop("step", "web/a:0", "text", Drop("reason"))
    _, parsed = report([SourceReport("web", "web", [ledger], 999_999, 0, 0)], tmp_path)
    assert "999,999 (> 99.99 %) were written" in parsed.text
    assert parsed.tables["web (web)"][1][3:5] == ["1", "< 0.01 %"]


def test_a_corpus_of_nothing_has_a_report(tmp_path: Path) -> None:
    for sources in ([], [SourceReport("web", "webtext", [Ledger(), Ledger()], 0, 0, 0)]):
        found, parsed = report(sources, tmp_path)
        assert found["warnings"] == []
        assert found["all_sources"]["entered_documents"] == 0
        assert "All sums were checked" in parsed.text


def test_a_source_that_lost_all_at_once_does_not_disturb_the_order_of_steps(tmp_path: Path) -> None:
    documents = [Page("zh_book", 0, "too short", "", 0), Page("en_web", None, "", "text", 0)]
    found, _ = report([source_report(name, documents) for name in ("zh_book", "en_web")], tmp_path)
    assert [(flow["stage"], flow["step"]) for flow in found["all_sources"]["steps"]] == STEPS


def test_a_folder_that_cannot_be_written_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch(stat.S_IRUSR)
    with pytest.raises(DataError, match="cannot be written"):
        corpus_report([], tmp_path / "file" / "report.html")
    assert not list(tmp_path.glob("*.tmp"))
