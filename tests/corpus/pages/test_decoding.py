"""Bytes of any encoding, declared rightly, wrongly or not at all, become the text that was written."""

import codecs
import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindllm_engine.corpus.pages.decoding import decode, decode_page
from mindllm_engine.corpus.pages.unreadable import Unreadable

SIMPLIFIED = "今天早上港口起了大雾，渡船推迟了两个小时才离开码头。\n乘客们都在候船室里喝茶聊天，孩子们跑来跑去。\n" * 3
TRADITIONAL = "今天早上港口起了大霧，渡船推遲了兩個小時才離開碼頭。\n乘客們都在候船室裡喝茶聊天，孩子們跑來跑去。\n" * 3
WESTERN = "“The café’s naïve façade” — déjà vu for Zoë and her résumé, at £5.\n" * 5
JAPANESE = "今朝は港に霧が出て、渡し船は二時間おくれて岸をはなれた。\n乗客は待合室でお茶を飲んでいた。\n" * 3


def page(text: str, declared: str = "") -> str:
    meta = f'<meta charset="{declared}">' if declared else ""
    return f"<html><head>{meta}<title>x</title></head><body><p>{text}</p></body></html>"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (SIMPLIFIED, "utf-8"),
        (SIMPLIFIED, "gb18030"),
        (SIMPLIFIED, "gbk"),
        (SIMPLIFIED, "utf-16-le"),
        (SIMPLIFIED, "utf-16-be"),
        (SIMPLIFIED, "utf-16"),
        (SIMPLIFIED, "utf-8-sig"),
        (TRADITIONAL, "big5"),
        (WESTERN, "cp1252"),
        (WESTERN, "utf-16-le"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc_jp"),
    ],
)
def test_undeclared_encodings(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding)) == text
    assert decode_page(page(text).encode(encoding), None) == page(text)


@pytest.mark.parametrize(
    ("text", "encoding", "declared"),
    [
        (SIMPLIFIED, "gbk", "gb2312"),
        (SIMPLIFIED + "㐀𠀀", "gb18030", "GBK"),
        (TRADITIONAL, "big5hkscs", "Big5"),
        (WESTERN, "cp1252", "iso-8859-1"),
        (JAPANESE, "cp932", "Shift_JIS"),
        ("Съешь ещё этих мягких булок", "koi8-r", "koi8-r"),
        (SIMPLIFIED, "utf-8", "gb2312"),
        (SIMPLIFIED, "gbk", "utf-8"),
        (SIMPLIFIED, "gbk", "iso-8859-1"),
        (TRADITIONAL, "big5", "windows-1252"),
        (WESTERN, "cp1252", "utf-8"),
        (SIMPLIFIED, "gbk", "no-such-encoding"),
    ],
)
def test_declared_encodings_right_and_wrong(text: str, encoding: str, declared: str) -> None:
    assert decode_page(page(text).encode(encoding), declared) == page(text)
    assert decode_page(page(text, declared).encode(encoding), None) == page(text, declared)


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_a_page_cut_within_a_character(encoding: str) -> None:
    data = SIMPLIFIED.rstrip().encode(encoding)[:-1]
    assert decode(data, [encoding]) == SIMPLIFIED.rstrip()[:-1] + "\ufffd"


def test_a_few_wrong_bytes_are_replaced() -> None:
    data = bytearray((SIMPLIFIED * 3).encode())
    data[data.index("雾".encode())] = 0xFF
    text = decode(bytes(data))
    assert text.replace("\ufffd", "") == (SIMPLIFIED * 3).replace("雾", "", 1)


def test_bytes_that_are_no_text() -> None:
    noise = random.Random(1).randbytes(4000)
    with pytest.raises(Unreadable) as caught:
        decode(noise)
    assert caught.value.reason in ("not text", "unknown encoding")
    with pytest.raises(Unreadable, match="not text"):
        decode(b"\x7fELF" + b"\0\1\2\3" * 100)
    with pytest.raises(Unreadable, match="not text"):
        decode(bytes(1000))


def test_scattered_null_bytes_do_not_make_utf_16() -> None:
    text = WESTERN.replace("café", "ca\0fé", 1)
    assert decode(text.encode()) == text
    assert decode(SIMPLIFIED.encode("gbk") + b"\0", ["gbk"]) == SIMPLIFIED + "\0"


@given(st.binary(max_size=400), st.sampled_from([None, "utf-8", "gbk", "big5", "utf-16", "x", "iso-2022-jp", "hz"]))
def test_any_bytes_decode_or_are_told(data: bytes, charset: str | None) -> None:
    with contextlib.suppress(Unreadable):
        assert decode_page(data, charset).encode() or not data.strip(b"\xef\xbb\xbf\xfe\xff")


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=200))
def test_valid_utf_8_is_taken_as_it_is(text: str) -> None:
    if not text.encode().startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        assert decode(text.encode(), ["gbk"]) == text
