"""The ledger against a plain list of everything that happened, and through the JSON that is really written."""

import random
from collections import Counter, defaultdict

import orjson
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from mindllm_engine.corpus.ledger import EXAMPLES, Drop, Ledger

STEPS = ["format cleaning", "low quality", "self-repetition"]
REASONS = ["text density", "too short", "language"]

# A document: how many steps it passes, the reason for which the next one drops it, its text and the detail.
Fate = tuple[int, str, str, str]
fates = st.lists(
    st.tuples(st.integers(0, len(STEPS)), st.sampled_from(REASONS), st.text(max_size=30), st.text(max_size=8)),
    max_size=120,
)


def play(documents: list[tuple[str, Fate]]) -> Ledger:
    """What the steps of a pipeline do to a ledger."""
    ledger = Ledger()
    for document_id, (passed, reason, text, detail) in documents:
        for number, step in enumerate(STEPS[: passed + 1]):
            ledger.enter(step, len(text))
            if number == passed:
                ledger.drop(step, document_id, text, Drop(reason, detail))
            elif text:
                ledger.count(step, "characters seen", len(text))
    return ledger


def stored(ledger: Ledger) -> Ledger:
    """Written to a file and read again."""
    return Ledger.from_json(orjson.loads(orjson.dumps(ledger.to_json())))


def numbered(documents: list[Fate]) -> list[tuple[str, Fate]]:
    return [(f"web/page:{number}", fate) for number, fate in enumerate(documents)]


@given(fates)
def test_sums_are_those_of_a_plain_count(documents: list[Fate]) -> None:
    ledger = play(numbered(documents))
    for number, step in enumerate(STEPS):
        entered = [fate for fate in documents if fate[0] >= number]
        if not entered:
            assert step not in ledger.steps
            continue
        entry = ledger.steps[step]
        assert (entry.documents, entry.chars) == (len(entered), sum(len(fate[2]) for fate in entered))
        dropped = [fate for fate in entered if fate[0] == number]
        assert {words: reason.documents for words, reason in entry.dropped.items()} == Counter(f[1] for f in dropped)
        chars: dict[str, int] = defaultdict(int)
        for fate in dropped:
            chars[fate[1]] += len(fate[2])
        assert {words: reason.chars for words, reason in entry.dropped.items()} == chars
        seen = sum(len(fate[2]) for fate in entered if fate[0] > number)
        assert entry.counts == ({"characters seen": seen} if seen else {})


@settings(max_examples=60)
@given(fates, st.integers(1, 5), st.randoms(use_true_random=False))
def test_merging_does_not_depend_on_order_or_partition(
    documents: list[Fate], files: int, chooser: random.Random
) -> None:
    whole = play(numbered(documents)).to_json()
    shuffled = numbered(documents)
    chooser.shuffle(shuffled)
    parts = [stored(play(shuffled[number::files])) for number in range(files)]
    chooser.shuffle(parts)
    merged = Ledger()
    for part in parts:
        merged.merge(part)
    assert merged.to_json() == whole
    assert list(merged.steps) == list(whole), "the order of the steps as well"


def test_of_many_the_same_twenty_are_chosen_whatever_the_order() -> None:
    ids = [f"zh_web/file:{number}" for number in range(5000)]
    expected = sorted(ids, key=lambda i: xxhash.xxh3_64_intdigest(f"too short {i}".encode()), reverse=True)[:EXAMPLES]
    for seed in range(3):
        random.Random(seed).shuffle(ids)
        ledger = Ledger()
        for document_id in ids:
            ledger.drop("low quality", document_id, f"text of {document_id}", Drop("too short"))
        examples = ledger.to_json()["low quality"]["dropped"]["too short"]["examples"]
        assert [(i, text) for _, i, _, text in examples] == [(i, f"text of {i}") for i in expected]
    # A random choice: not the first of the file, nor the last.
    numbers = sorted(int(document_id.rpartition(":")[2]) for document_id in expected)
    assert numbers[0] < 1500
    assert numbers[-1] > 3500


def test_the_choice_differs_from_reason_to_reason() -> None:
    ledger = Ledger()
    for number in range(1000):
        for reason in REASONS:
            ledger.drop("low quality", f"web/a:{number}", "", Drop(reason))
    chosen = [{example[1] for example in reason.examples} for reason in ledger.steps["low quality"].dropped.values()]
    assert len(set.union(*chosen)) > 2 * EXAMPLES


@given(st.lists(st.text(st.characters(), max_size=5), min_size=1, max_size=40), st.text(st.characters(), max_size=900))
def test_every_ledger_can_be_written_and_read_again(ids: list[str], text: str) -> None:
    """Ids with lone surrogates come from names of files that are not UTF-8, details from messages of errors."""
    ledger = Ledger()
    for document_id in ids:
        document_id += "\udc80"
        ledger.enter("read", len(text))
        ledger.drop("read", document_id, text + "\ud800", Drop("failed: ValueError", f"cannot read {text}\ud800"))
    ledger.count("read", "pages", 2**62)
    written = orjson.dumps(ledger.to_json())
    assert orjson.dumps(stored(ledger).to_json()) == written
    more = stored(ledger)
    more.merge(Ledger())
    assert orjson.dumps(more.to_json()) == written


def test_examples_are_short_however_long_the_text() -> None:
    ledger = Ledger()
    text = "begin" + "x" * 10_000_000 + "end"
    ledger.drop("read", "a:0", text, Drop("failed: ValueError", f"bad text {text}"))
    ledger.drop("read", "a:1", text, Drop("sensitive words", excerpt="y" * 10_000_000))
    assert len(orjson.dumps(ledger.to_json())) < 4000
    (example,) = ledger.steps["read"].dropped["failed: ValueError"].examples
    assert example[3].startswith("beginx")
    assert example[3].endswith("xend")
    assert ledger.steps["read"].dropped["failed: ValueError"].chars == len(text)


def test_an_excerpt_is_shown_in_place_of_the_text() -> None:
    ledger = Ledger()
    ledger.drop("decontamination", "a:0", "the whole text", Drop("benchmark", excerpt="whole"))
    ledger.drop("decontamination", "a:1", "the whole text", Drop("other", excerpt=""))
    dropped = ledger.steps["decontamination"].dropped
    assert dropped["benchmark"].examples[0][3] == "whole"
    assert dropped["other"].examples[0][3] == ""
    assert dropped["benchmark"].chars == len("the whole text")


def test_merging_leaves_the_other_ledger_as_it_was() -> None:
    ours, theirs = play(numbered([(0, "too short", "a", "")])), play(numbered([(1, "language", "bcd", "")]))
    before = orjson.dumps(theirs.to_json())
    ours.merge(theirs)
    ours.drop("low quality", "x", "y", Drop("language"))
    ours.count("low quality", "characters seen", 5)
    assert orjson.dumps(theirs.to_json()) == before


def test_clear_begins_another_file() -> None:
    ledger = play(numbered([(0, "too short", "a", "")]))
    ledger.clear()
    assert ledger.to_json() == {}
