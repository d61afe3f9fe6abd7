"""Profiles of texts against unicodedata, the rules of low quality one by one, and what they cost of real text."""

import gzip
import itertools
import json
import pickle
import random
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import regex
from datatrove.data import Document
from hypothesis import given
from hypothesis import strategies as st

from mindllm_engine import _native
from mindllm_engine.corpus.ledger import Drop
from mindllm_engine.corpus.steps.advertisements import CONTACTS, promotion
from mindllm_engine.corpus.steps.low_quality import LowQuality, LowQualityConfig, text_density
from mindllm_engine.errors import ConfigError

ZH = "今天的会议讨论了三个问题，其中最重要的是如何提高产品质量。大家认为，应当先从原料开始检查，再改进生产过程。"
IDEOGRAPH = regex.compile(r"[\p{Unified_Ideograph}\uf900-\ufad9\U0002f800-\U0002fa1f々〇]")
EN = "The committee met today and discussed three questions, of which the most important was how to make better goods."


def apply(text: str, source: str = "web", **settings: Any) -> tuple[Drop | None, Document]:
    document = Document(text, "web/f:0", metadata={"source": source})
    return LowQuality(LowQualityConfig(**settings)).apply(document), document


# -- Profiles ---


def test_code_points_are_counted_as_unicode_has_them() -> None:
    """Every assigned character outside the blocks of symbols. Some letters stand among symbols (ª ℂ ㈠ Ⅷ), and signs of
    numbers and currency among letters: these are few."""
    differing = 0
    for code in itertools.chain(range(0xD800), range(0xE000, 0x110000)):
        char = chr(code)
        category = unicodedata.category(char)
        if category in ("Cn", "Co"):
            continue
        profile = _native.profile_text(char)
        assert profile.characters == profile.counted == 1
        assert profile.han == bool(
            regex.match(r"[\p{Unified_Ideograph}\uf900-\ufad9\U0002f800-\U0002fa1f々〇]", char)
        ), hex(code)
        is_letter = profile.han + profile.kana + profile.hangul + profile.latin + profile.other_letters
        if category[0] == "L" and code < 0x10000 and is_letter == 0:
            differing += 1
        if code < 0x250:
            assert profile.latin == (category in ("Ll", "Lu", "Lo", "Lt")), hex(code)
            assert profile.accented == (profile.latin and not char.isascii()), hex(code)
        if category[0] == "L" and is_letter:
            assert profile.text == 1, hex(code)
        if category in ("Zs", "Nd") and code < 0x10000:
            assert profile.text == 1, hex(code)
    assert differing < 200


@given(st.text("ab1é中の한я .,!-|#\n\t你，。★", max_size=80))
def test_profiles_add_up(text: str) -> None:
    profile = _native.profile_text(text)
    runs = ["".join(run) for _, run in itertools.groupby(text)]
    capped = "".join(run[:3] for run in runs)
    assert profile.characters == len(text)
    assert profile.counted == len(capped)
    assert profile.text == sum(char not in "|#★" for char in capped)
    assert profile.spaces == sum(map(str.isspace, text))
    assert profile.han == sum(char in "中你" for char in text)
    assert profile.kana == text.count("の")
    assert profile.hangul == text.count("한")
    assert profile.latin == sum(char in "abé" for char in text)
    assert profile.other_letters == text.count("я")
    assert profile.ascii == sum(map(str.isascii, text))
    assert profile.words == len(regex.findall("[ab1é한я]+", text))
    assert text_density(profile) == pytest.approx(profile.text / len(capped) if text else 0)


@given(st.text("12 -.x", max_size=60))
def test_groups_of_digits(text: str) -> None:
    groups = [regex.sub(r"\D", "", group) for group in regex.findall(r"\d(?:[ .-]?\d)*", text)]
    assert _native.profile_text(text).digit_groups == sum(7 <= len(group) <= 15 for group in groups)


@given(st.text(st.sampled_from("Ãâä¸\xad€™é中a\x80\x99½‘œ"), max_size=40))
def test_sequences_of_utf8_in_latin(text: str) -> None:
    """A character that Windows-1252 has nothing for ends a sequence."""
    data = bytearray()
    for char in text:
        try:
            data += char.encode("latin-1") if ord(char) < 0x100 else char.encode("cp1252")
        except UnicodeEncodeError:
            data += b" "
    pattern = rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
    assert _native.profile_text(text).utf8_as_latin == sum(map(len, regex.findall(pattern, bytes(data))))


# -- Rules ---


def test_good_pages_pass_and_get_their_language() -> None:
    for text, language in ((ZH * 3, "zh"), (EN * 3, "en")):
        drop, document = apply(text)
        assert drop is None
        assert document.metadata["lang"] == language


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("汉" * 99, "too short"),
        ("汉" * 100, None),
        (ZH, "too short"),
        ("404 Not Found", "too short"),
        ("首页 > 新闻 > 体育 > 正文", "too short"),
        ("word " * 19, "too short"),
        ("word " * 20, None),
        ("", "text density"),
        ("★" * 3 + "abc", "text density"),
        ("| # | ~ | $ |\n" * 50, "text density"),
        (ZH * 3 + "│┤├┼" * 10, None),
        (ZH * 3 + "│┤├┼" * 30, "text density"),
        (ZH * 3 + "\n" + "-" * 1000, None),
        ("Die Stadt liegt an einem breiten Fluss, und im Sommer sitzen die Leute abends am Ufer. " * 3, "language"),
        ("町は広い川のほとりにあり、夏になると人々は夕方に岸辺に座って話をします。" * 5, "language"),
    ],
)
def test_what_is_dropped(text: str, reason: str | None) -> None:
    drop, _ = apply(text)
    assert (drop.reason if drop else None) == reason


def test_settings_decide() -> None:
    assert apply(ZH, min_chinese_chars=40)[0] is None
    assert apply(ZH, source="poems", min_length_of={"poems": 20})[0] is None
    assert apply("一行诗", source="poems", min_length_of={"poems": 20})[0] is not None
    assert apply(ZH, source="web", min_length_of={"poems": 20})[0] is not None
    assert apply("two words", source="chat", min_length_of={"chat": 2})[0] is None
    assert apply(EN * 3, languages=["zh"])[0] == Drop("language", "en")
    assert apply(ZH * 3 + "│┤├┼" * 30, min_text_density=0.5)[0] is None


@pytest.mark.parametrize(
    "settings",
    [
        {"languages": []},
        {"min_text_density": 75},
        {"max_promotion_share": -1},
        {"min_chinese_chars": -1},
        {"min_length_of": {"poems": -3}},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        LowQuality(LowQualityConfig(**settings))


def test_the_step_can_be_sent_to_another_process() -> None:
    step = LowQuality(LowQualityConfig())
    step.apply(Document(EN * 3, "s/f:0"))
    document = Document(ZH * 3, "s/f:1")
    assert pickle.loads(pickle.dumps(step)).apply(document) is None
    assert document.metadata["lang"] == "zh"


# -- Advertisements ---

ADS = [
    "专业承接各类装修工程，价格优惠，质量保证！欢迎来电咨询。\n联系电话：13812345678 微信同号\n"
    "前十名客户特价，赠送电器一台，名额有限，先到先得！欢迎致电 400-820-1234。\n"
    "专业团队，上门服务，厂家直销，全市最低价。联系电话 021-56781234，加微信：zhuangxiu88",
    "全场清仓大促销，原价999，现价仅需199！限时抢购，包邮到家，货到付款。"
    "订购热线：400 660 9988，加微信 maihuo2020 领取优惠。正品保证，假一赔十，数量有限，赶快行动！"
    "QQ：123456789，马上下单还有大礼包赠送，机会难得，不容错过，热销爆款等你来抢。",
    "Lowest prices on replica watches! Order now and get free shipping. Limited time offer: 50% off everything. "
    "Call now: 555-123-4567. Satisfaction guaranteed or your money back. Don't miss this special offer - hurry, while "
    "supplies last! WhatsApp: +15551234567",
    "Make money today! Work from home, no obligation, free consultation. Sign up now, call us at (555) 987-6543. "
    "Act now, this exclusive offer ends soon! Click here for a free trial and a discount coupon.",
]
NO_ADS = [
    ZH * 3 + "如有疑问，请致电 010-62345678。",
    "市消费者协会提醒：近日有商家以“清仓”“特价”为名诱导消费，请市民注意保留票据。投诉电话：12315。"
    "据介绍，今年以来共接到投诉三百余起，其中预付卡消费占四成。"
    "协会建议，消费者在办卡之前要核实商家资质，不要一次存入过多的钱，发现问题及时向有关部门反映，并保存好合同。",
    "A pair of shoes costs $40 and there is a 10% discount this week. How much do three pairs cost? First find the "
    "price of one pair, which is $36, then multiply by three to get $108. The answer is 108.",
    "The library is open from nine to five. For questions about the reading room, phone 555-123-4567 or write to the "
    "librarian. Visitors may borrow up to three books at a time and return them within four weeks of the date.",
]


@pytest.mark.parametrize("text", ADS)
def test_advertisements_are_dropped(text: str) -> None:
    drop, _ = apply(text, min_chinese_chars=50)
    assert drop is not None
    assert drop.reason == "advertisement"
    # A long text that ends with one is not.
    assert apply((ZH + EN) * 30 + text)[0] is None


@pytest.mark.parametrize("text", NO_ADS)
def test_pages_that_speak_of_prices_or_give_a_number_stay(text: str) -> None:
    assert apply(text, min_chinese_chars=50)[0] is None


@pytest.mark.parametrize(
    ("text", "contacts"),
    [
        ("13812345678", 1),
        ("+86 138-1234-5678", 1),
        ("400-820-1234 and 021-56781234", 2),
        ("QQ：12345678", 1),
        ("加微信：abc_88888", 1),
        ("WeChat ID: seller2020", 1),
        ("call (555) 123-4567", 1),
        ("2023-10-24 12:30:05, 192.168.100.200, 3.14159265, ISBN 9787111111111", 0),
        ("一共 1234567890123 元", 0),
    ],
)
def test_contacts(text: str, contacts: int) -> None:
    assert len(CONTACTS.findall(text)) == contacts


PHRASES = ["ab", "abc", "b a", "中文", "中", "文中文", "% off", "a1"]


@given(st.text("abcAB1 %of中文", max_size=60))
def test_phrases_are_found_as_a_regular_expression_would(text: str) -> None:
    def pattern(phrase: str) -> str:
        start = r"(?<![a-zA-Z0-9])" if phrase[0].isascii() and phrase[0].isalnum() else ""
        end = r"(?![a-zA-Z0-9])" if phrase[-1].isascii() and phrase[-1].isalnum() else ""
        return start + regex.escape(phrase) + end

    longest_first = sorted(PHRASES, key=lambda phrase: -len(phrase.encode()))
    found = regex.findall("|".join(map(pattern, longest_first)), text, regex.IGNORECASE)
    assert _native.PhraseSet(PHRASES).count(text) == (len(found), sum(map(len, found)))


def test_phrases_must_have_two_bytes() -> None:
    with pytest.raises(ValueError, match="two bytes"):
        _native.PhraseSet(["a"])
    assert _native.PhraseSet([]).count("abc") == (0, 0)


@pytest.mark.parametrize("unit", ["1", "1 ", "1-", "QQ", "QQ ", "电话:", "+1 ", "400", "优惠1", "(", "a", "微信 "])
def test_looking_for_contacts_takes_bounded_time(unit: str) -> None:
    text = "优惠优惠优惠" + unit * (3000 // len(unit))
    start = time.process_time()
    for _ in range(20):
        promotion(text, _native.profile_text(text))
    assert time.process_time() - start < 2


# -- Real text ---

# Sources whose documents are no pages: poems, comments, answers, and pages of a manual.
SHORT = {"zh_book": 20, "zh_webtext": 10, "zh_qa": 40, "zh_technology": 5, "zh_math": 30}


def test_clean_real_text_is_kept(real_text: Path) -> None:
    for path in sorted(real_text.glob("*.gz")):
        source = path.name.split(".")[0]
        step = LowQuality(LowQualityConfig(min_length_of=SHORT))
        with gzip.open(path, "rt", encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line in itertools.islice(file, 0, None, 3)]
        lost = [
            drop
            for text in texts
            if (drop := step.apply(Document(_native.clean_format(text)[0], "s/f:0", metadata={"source": source})))
        ]
        assert len(lost) < 0.01 * len(texts), (source, lost)


def test_order_does_not_matter() -> None:
    texts = [ZH * 3, EN * 3, *ADS, *NO_ADS, "x"]
    expected = [apply(text)[0] for text in texts]
    step = LowQuality(LowQualityConfig())
    order = random.Random(0).sample(range(len(texts)), len(texts))
    assert [step.apply(Document(texts[i], "s/f:0")) for i in order] == [expected[i] for i in order]
