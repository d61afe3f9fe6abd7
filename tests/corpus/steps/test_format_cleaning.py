"""Format cleaning against Unicode's own properties, against a slow model of it in regular expressions, and on real
text; garbled text of every kind, made by decoding real text wrongly."""

import gzip
import itertools
import json
import pickle
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import regex
from datatrove.data import Document
from hypothesis import given, settings
from hypothesis import strategies as st

from mindllm_engine import _native
from mindllm_engine.corpus.ledger import Drop
from mindllm_engine.corpus.steps.format_cleaning import FormatCleaning, FormatCleaningConfig
from mindllm_engine.corpus.steps.mojibake import LONGEST_MENDED, Garbled, find_garbled, mend
from mindllm_engine.errors import ConfigError

LOST = FormatCleaningConfig().max_lost_share


def clean(text: str) -> str:
    return str(_native.clean_format(text)[0])


# -- Each character by itself ---


def expected_between_letters(char: str) -> str:
    """What becomes of a character between a and b, by Unicode's properties."""
    category = unicodedata.category(char)
    if char in "\n\r\v\f\x85\u2028\u2029":
        return "a\nb"
    if char == "\t" or (category == "Zs" and char == " "):
        return f"a{char}b"
    if category == "Cc" or regex.match(r"\p{Noncharacter_Code_Point}", char):
        return "ab"
    if regex.match(r"\p{Variation_Selector}", char) or char == "\u20e3":
        return "ab"
    if category == "Zs" or regex.match(r"[\p{Default_Ignorable_Code_Point}\ufff9-\ufffc]", char):
        return "a b"
    if regex.match(r"\p{Emoji_Presentation}", char):
        return "a b"
    if char >= "\U0001f000" and regex.match(r"\p{Extended_Pictographic}", char):
        return "a b"
    return f"a{char}b"


def test_every_code_point_is_treated_as_unicode_says() -> None:
    wrong = []
    for code in itertools.chain(range(0xD800), range(0xE000, 0x110000)):
        char = chr(code)
        # What Unicode has not assigned yet may be an emoji one day; only what it has is compared.
        if unicodedata.category(char) == "Cn" and not regex.match(r"\p{Noncharacter_Code_Point}", char):
            continue
        if clean(f"a{char}b") != expected_between_letters(char):
            wrong.append(hex(code))
    assert wrong == []


# -- All together, but markup ---

HAN = "\u4e00-\u9fff\u3400-\u4dbf"
ZH = f"{HAN}，。、《》！"
SHARED = "“”…"
INVISIBLE = "\u200b\u00ad\ufeff\u200d"
EMOJI = r"[\p{Emoji_Presentation}]\p{EMod}?|✔\ufe0f"


def slow_clean(text: str) -> str:
    """By one regular expression after the other; G (private use) marks where something invisible was."""
    text = regex.sub(r"\r\n?|[\v\f\x85\u2028\u2029]", "\n", text)
    text = regex.sub(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]", "", text)
    text = regex.sub(r"[\u00a0\u3000\u2009]", " ", text)
    sequence = rf"(?:{EMOJI})(?:\ufe0f|\u20e3|\p{{EMod}}|\u200d+(?:{EMOJI}|✔|\p{{Emoji_Presentation}})?)*"
    text = regex.sub(sequence, "\ue001", text)
    text = regex.sub(r"[\ufe0f\u20e3]", "", text)
    text = regex.sub(f"[{INVISIBLE}]", "\ue000", text)
    done = ""
    gap = False
    for char in text:
        before = done[-1:]
        if char == "\ue000":
            gap = gap or before not in ("", "\n")
        elif char == "\ue001":
            gap = True
        elif char == "\n":
            done, gap = done + char, False
        elif char in " \t":
            if not (gap and before in ("", "\n", " ", "\t")):
                done += char
            gap = False
        else:
            closing = char in ".,;:!?)]}%'\"，。、《》！"
            done += " " + char if gap and before not in ("", "\n", " ", "\t") and not closing else char
            gap = False
    zh, either = f"[{ZH}]", f"[{ZH}{SHARED}]"
    done = regex.sub(rf"(?<={zh}) +(?={either})|(?<={either}) +(?={zh})", "", done)
    done = regex.sub(r"(?m)[ \t]+$", "", done)
    return regex.sub(r"\n{4,}", "\n\n\n", done).lstrip("\n").rstrip()


PIECES = [
    *"ab1 \t\n.",
    "  ",
    "\n\n\n",
    "    x",
    "中",
    "漢",
    "，",
    "《",
    "“",
    "”",
    "…",
    *"\x00\x07\r\v\x85\u2028",
    "\r\n",
]
PIECES += [
    *INVISIBLE,
    "\u00a0",
    "\u3000",
    "\u2009",
    "😀",
    "👍🏽",
    "✔",
    "✔\ufe0f",
    "\ufe0f",
    "1\ufe0f\u20e3",
    "⭐",
    "🇨🇳",
]


@settings(max_examples=1000)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_the_one_pass_equals_many(text: str) -> None:
    assert clean(text) == slow_clean(text)


MARKUP = [
    "<",
    ">",
    "/",
    "b",
    "<b>",
    "</b>",
    "<br/>",
    "<script>",
    "</script>",
    "<!--",
    "-->",
    "-",
    "!",
    "```\n",
    "`",
    "&nbsp",
]
MARKUP += [
    ";",
    "&",
    "=",
    "'",
    '"',
    "<a href='x'>",
    "<path>",
    "<List<A>>",
    "<style x=1>",
    "</style>",
    "script",
    "\x00",
    "<td>",
]


@settings(max_examples=1500)
@given(st.lists(st.sampled_from(PIECES + MARKUP), max_size=30).map("".join))
def test_a_second_pass_changes_nothing(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    assert _native.clean_format(once)[1] == {}


@settings(max_examples=500)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_cleaned_once_and_for_all(text: str) -> None:
    once, removed = _native.clean_format(text)
    assert _native.clean_format(once) == (once, {})
    assert (once == text) == (removed == {})
    assert not any(unicodedata.category(char) in ("Cc", "Zl", "Zp") and char not in "\n\t" for char in once)


# -- Markup, code, verse ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<p>第一段</p><p>第二段</p>", "第一段第二段"),
        ("<div class='x'>one</div><div>two</div>", "one two"),
        ("wor<b>d</b>s and <EM>more</EM>", "words and more"),
        ("a<br>b<br />c", "a b c"),
        ("x <script type='t'>if (a<b) { y() }\n</SCRIPT> z", "x z"),
        ("<style>p { color: red }</style>text", "text"),
        ("a <!-- hidden\nover lines --> b", "a b"),
        ("no end <!-- here", "no end here"),
        ("one&nbsp;two &nbsp; three", "one two three"),
        ("<scr<b>ipt>x</script>y", "y"),
        ('<img src="a.png" alt="a picture"/>text', "text"),
        ("<!DOCTYPE html><html lang='en'>text</html>", "text"),
        ("<table border=1><tr><td>1</td><td>2</td></tr></table>", "1 2"),
        # Not markup.
        ("if (a<b && c>d) return;", "if (a<b && c>d) return;"),
        ("List<A> and Vec<T>, map<int, b>", "List<A> and Vec<T>, map<int, b>"),
        ("cp <source> <path>; use <title>", "cp <source> <path>; use <title>"),
        ("1 < 2 and 3 > 2; a <b and c> d", "1 < 2 and 3 > 2; a <b and c> d"),
        ("write `<br>` or `&nbsp;` or `<!--`", "write `<br>` or `&nbsp;` or `<!--`"),
        ("```html\n<p>kept</p>\n```\n<p>gone</p>", "```html\n<p>kept</p>\n```\ngone"),
        ("<name@example.org> <http://x.org>", "<name@example.org> <http://x.org>"),
        # Spaces.
        ("你 好 ， 世 界 。", "你好，世界。"),
        ("使用 Python 3 编程", "使用 Python 3 编程"),
        ("他说 “你好” 。", "他说“你好”。"),
        ("“a” “b”", "“a” “b”"),
        ("  床前明月光，\n    疑是地上霜。", "  床前明月光，\n    疑是地上霜。"),
        ("def f():\n\treturn  1   # 中 文\n\n\n\n\n\nx", "def f():\n\treturn  1   # 中文\n\n\nx"),
        ("a \t\nb  ", "a\nb"),
        ("\n\n  \n a", " a"),
        # Emoji and signs.
        ("好👍🏽！👨‍👩‍👧‍👦🇨🇳", "好！"),
        ("1️⃣ first #️⃣ © ® ™ ✔ ☎ ↔ 5℃", "1 first # © ® ™ ✔ ☎ ↔ 5℃"),
        ("love ❤️ it", "love it"),
        ("Great😀Thanks", "Great Thanks"),
        ("🏴󠁧󠁢󠁥󠁮󠁧󠁿x", "x"),
        # Left alone.
        ("繁體中文與简体", "繁體中文與简体"),
        ("ﬁ ① Å e\u0301 ｱ", "ﬁ ① Å e\u0301 ｱ"),
    ],
)
def test_examples(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_what_was_removed_is_counted() -> None:
    text = "a\x00\x01 \u200b中 文😀 \n\n\n\n\nx&nbsp;<b>y</b>  "
    assert _native.clean_format(text)[1] == {
        "control characters": 2,
        "invisible characters": 1,
        "spaces between Chinese characters": 1,
        "emoji": 1,
        "trailing spaces": 3,
        "blank lines": 2,
        "markup": 3,
    }
    with pytest.raises(UnicodeEncodeError):
        _native.clean_format("\ud800")
    with pytest.raises(TypeError):
        _native.clean_format(b"bytes")  # type: ignore[arg-type]


MB = 1 << 20
HOSTILE: dict[str, Callable[[], str]] = {
    "spaces": lambda: " " * (50 * MB),
    "spaces and a character": lambda: "中" + " " * (50 * MB) + "中",
    "null bytes": lambda: "\x00" * (20 * MB),
    "one line": lambda: "word " * (10 * MB),
    "newlines": lambda: " \n" * (10 * MB),
    "combining marks": lambda: "a" + "\u0301" * (10 * MB),
    "joiners": lambda: "👩" + "\u200d" * (5 * MB) + "👩\u200d" * MB,
    "openings": lambda: "<" * (20 * MB),
    "closings": lambda: "<a" + ">" * (20 * MB),
    "tags": lambda: "<b>" * (5 * MB),
    "nested tags": lambda: "<a" * (2 * MB) + "<b>" * MB + ">" * (2 * MB),
    "scripts": lambda: "<script>" * (2 * MB),
    "comments": lambda: "<!--" * (4 * MB),
    "quotes": lambda: '<a x="' * MB + ">" * MB,
    "fences": lambda: "```\n" * (4 * MB),
    "chinese and spaces": lambda: "中 " * (5 * MB),
    "chinese, letters and spaces": lambda: ("中" + " " * 1000 + "x" + " " * 1000) * 5000,
    "mojibake": lambda: "ä¸\xad" * (3 * MB),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_texts_take_linear_time(kind: str) -> None:
    text = HOSTILE[kind]()
    start = time.process_time()
    cleaned, _ = _native.clean_format(text)
    profile = _native.profile_text(text)
    seconds = time.process_time() - start
    assert len(cleaned) <= len(text) == profile.characters
    assert seconds < 5 + len(text.encode()) / (10 * MB)  # 10 MB/s: a tenth of what ordinary text takes


# -- Garbled text ---

CHINESE = "今天的会议讨论了三个问题，其中最重要的是如何提高产品质量。大家认为，应当先从原料开始检查，再改进生产过程。"
CP1252 = {byte: bytes([byte]).decode("cp1252", errors="ignore") or chr(byte) for byte in range(0x80, 0xA0)}


def garble(text: str, kind: str) -> str:
    if kind == "UTF-8 as Latin-1":
        return text.encode().decode("latin-1")
    if kind == "UTF-8 as Windows-1252":
        return text.encode().decode("latin-1").translate(CP1252)
    if kind == "UTF-8 as GBK":
        return text.encode().decode("gb18030", errors="replace")
    as_gbk = text.encode("gb18030")
    if kind == "GBK as Latin-1":
        return as_gbk.decode("latin-1")
    if kind == "GBK as Windows-1252":
        return as_gbk.decode("latin-1").translate(CP1252)
    lost = as_gbk.decode("utf-8", errors="replace")
    if kind == "GBK as UTF-8":
        return lost
    assert kind == "lost twice"
    return lost.encode().decode("gb18030", errors="replace")


KINDS = ["UTF-8 as Latin-1", "UTF-8 as Windows-1252", "UTF-8 as GBK", "GBK as Latin-1", "GBK as Windows-1252"]
KINDS += ["GBK as UTF-8", "lost twice"]
MENDED = {"UTF-8 as Latin-1", "UTF-8 as Windows-1252", "GBK as Latin-1", "GBK as Windows-1252"}


def run_step(text: str) -> tuple[str | None, FormatCleaning]:
    step = FormatCleaning(FormatCleaningConfig())
    documents = list(step.run(iter([Document(text, "s/f:0")])))
    return (documents[0].text if documents else None), step


@pytest.mark.parametrize("kind", KINDS)
def test_garbled_chinese_is_mended_or_dropped(kind: str) -> None:
    text, step = run_step(garble(CHINESE, kind))
    entry = step.ledger.steps["format cleaning"]
    if kind in MENDED:
        assert text == CHINESE
        assert sum(number for what, number in entry.counts.items() if what.startswith("mended")) == 1
    else:
        assert text is None
        assert list(entry.dropped) == ["garbled text"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I don’t know “why” — it’s café time.", None),
        ("Das Mädchen hörte Musik; très déjà vu à la plage.", None),
        ("网页上出现“锟斤拷”是因为编码转换有误，" + CHINESE * 10, None),
        ("烫烫烫烫烫烫烫烫屯屯屯屯屯屯" * 3, Garbled.LOST),
        ("锟斤拷锟斤拷锟斤拷 12", Garbled.LOST),
        (CHINESE + "\ufffd" * 5, Garbled.LOST),
        (CHINESE + "\ue000\ue001" * 3, Garbled.LOST),
        ("I donâ€™t know", Garbled.UTF8_AS_LATIN),
        ("", None),
        ("涓涓细流，汇成江河。", None),
        ("汤很烫烫的", None),
    ],
)
def test_what_is_found(text: str, expected: Garbled | None) -> None:
    assert find_garbled(text, _native.profile_text(text), LOST) is expected


def test_english_quotes_are_mended() -> None:
    original = "I don’t know “why” — it’s café time.\nA plain line.\n"
    for kind in ("UTF-8 as Latin-1", "UTF-8 as Windows-1252"):
        assert mend(garble(original, kind), Garbled.UTF8_AS_LATIN, LOST) == original


@pytest.mark.parametrize("text", ["ä¸\xad", "Ã\u0192Â¢", "ä¸\xad\n", "ÖÐ", "涓枃", "é"])
def test_mending_takes_bounded_time(text: str) -> None:
    long = text * (LONGEST_MENDED // len(text))
    start = time.process_time()
    run_step(long)
    assert time.process_time() - start < 10


def test_a_long_garbled_text_is_dropped_unread() -> None:
    text = garble(CHINESE, "UTF-8 as Latin-1")
    assert mend(text * (LONGEST_MENDED // len(text) + 1), Garbled.UTF8_AS_LATIN, LOST) is None


def real_documents(folder: Path, language: str, every: int) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob(f"{language}_*.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in itertools.islice(file, 0, None, every):
                yield path.name, json.loads(line)["text"]


def test_real_text_is_left_alone_and_garbled_real_text_is_caught(real_text: Path) -> None:
    touched, clean_texts, total = 0, [], 0
    for name, text in itertools.chain(real_documents(real_text, "zh", 5), real_documents(real_text, "en", 5)):
        total += 1
        profile = _native.profile_text(text)
        if find_garbled(text, profile, LOST) is not None:
            touched += 1
        elif name.startswith("zh") and profile.han > 10:
            clean_texts.append(text)
    assert touched < 0.001 * total
    for kind in KINDS:
        caught, wrong = 0, 0
        sample = clean_texts[::20]
        for text in sample:
            garbled = garble(text, kind)
            found = find_garbled(garbled, _native.profile_text(garbled), LOST)
            mended = mend(garbled, found, LOST) if found else None
            caught += found is not None
            wrong += mended is not None and mended != text
        assert caught >= 0.99 * len(sample), kind
        assert wrong <= 0.02 * len(sample), kind


# -- The step ---


def test_the_step_cleans_counts_and_drops() -> None:
    text, step = run_step("你 好😀")
    assert text == "你好"
    assert step.ledger.steps["format cleaning"].counts == {"emoji": 1, "spaces between Chinese characters": 1}
    assert FormatCleaning(FormatCleaningConfig()).apply(Document("😀\u200b \n", "s/f:1")) == Drop("nothing left")
    text, step = run_step("\ud800")
    assert text is None
    assert list(step.ledger.steps["format cleaning"].dropped) == ["failed: UnicodeEncodeError"]


def test_the_step_can_be_sent_to_another_process() -> None:
    step = FormatCleaning(FormatCleaningConfig())
    step.apply(Document(garble(CHINESE, "UTF-8 as Latin-1"), "s/f:0"))
    again = pickle.loads(pickle.dumps(step))
    document = Document("你 好", "s/f:0")
    assert again.apply(document) is None
    assert document.text == "你好"


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_impossible_settings_are_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="max_lost_share"):
        FormatCleaning(FormatCleaningConfig(max_lost_share=share))
