"""Bytes of a page or text file as a string: what they declare is weighed against what they are.

In this order: a byte order mark; UTF-16 without one, known by its zero bytes; valid UTF-8, whatever is declared; what
the HTTP header or the page declares; what resiliparse's detector (from character statistics) makes of it. An encoding
is accepted if next to nothing fails to decode. Time and memory are linear in the length.
"""

import codecs
import re

from mindllm_engine.corpus.pages.unreadable import UNKNOWN_ENCODING, Unreadable

# Of the characters that are not ASCII, what may fail to decode: pages are cut off within a character, and some mix.
MAX_FAILED_SHARE = 0.02
# Of the bytes at the beginning, how many may be control characters before it is no text at all.
MAX_CONTROL_SHARE = 0.05
# Of the characters that unmarked UTF-16 gives, how many must be ASCII, Chinese or Japanese. At the wrong byte order, or
# in another encoding, few are.
MIN_COMMON_SHARE = 0.9

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# The WHATWG's names that have a larger relative: what is declared as the smaller is often written in the larger.
_SUPERSETS = {"gbk": "gb18030", "gb2312": "gb18030", "big5": "big5hkscs", "shift_jis": "cp932", "euc_kr": "cp949"}
_MULTI_BYTE = {"gb18030", "gbk", "big5", "shift_jis", "euc_jp", "euc_kr", "iso_2022_jp"}
_META = re.compile(
    rb"<meta[^>]{0,500}?charset\s*=\s*[\"']?\s*([\w:.-]{2,40})|<\?xml[^>]{0,200}encoding=[\"']([\w:.-]+)", re.I
)
_META_BYTES = 4096
_SAMPLE_BYTES = 1 << 16
_COMMON = re.compile(r"[\t\n\r -~\u2010-\u2026\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef]")
_CONTROLS = bytes([*range(9), *range(14, 32)])


def decode_page(data: bytes, charset: str | None) -> str:
    """The HTML in some bytes; `charset` is the HTTP header's. Raises Unreadable."""
    declared = [charset] if charset else []
    if match := _META.search(data, 0, _META_BYTES):
        declared.append((match[1] or match[2]).decode("ascii", "replace"))
    return decode(data, declared)


def decode(data: bytes, declared: list[str] | tuple[str, ...] = ()) -> str:
    """A string without byte order mark; bytes that fail to decode become U+FFFD. Raises Unreadable."""
    text = _decoded(data, declared)
    sample = text[:_SAMPLE_BYTES].encode(errors="replace")
    controls = len(sample) - len(sample.translate(None, _CONTROLS))
    if controls > MAX_CONTROL_SHARE * len(sample):
        raise Unreadable("not text", f"{controls} control characters in the first {len(sample)} bytes")
    return text


def _decoded(data: bytes, declared: list[str] | tuple[str, ...]) -> str:
    for mark, marked in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(marked, "replace")
    if encoding := _utf_16_of_markup(data):
        return data.decode(encoding, "replace")
    try:
        return data.decode()
    except UnicodeDecodeError:
        pass
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    names = [map_encoding_to_html5(name, fallback_utf8=False) for name in declared]
    detected = detect_encoding(data, _SAMPLE_BYTES * 2)
    if detected in _MULTI_BYTE:
        # A page that declares Latin-1 because the server always does: any bytes at all are valid Latin-1.
        names = [name for name in names if name in _MULTI_BYTE or name == "utf-8"]
    for name in dict.fromkeys((_utf_16_of_chinese(data), *names, "utf-8", detected)):
        if name and (text := _try(data, _SUPERSETS.get(name, name))) is not None:
            return text
    raise Unreadable(UNKNOWN_ENCODING, f"declared {', '.join(declared) or 'none'}, looks like {detected}")


def _try(data: bytes, encoding: str) -> str | None:
    """The text if the encoding fits."""
    try:
        text = data.decode(encoding, "replace")
    except LookupError:  # of the WHATWG's encodings Python lacks a few
        return None
    failed = text.count("\ufffd")
    not_ascii = len(text) - len(text.encode("ascii", "ignore"))
    # One may always fail, the last: a page may be cut off within a character.
    return text if failed - text.endswith("\ufffd") <= MAX_FAILED_SHARE * not_ascii else None


def _utf_16_of_markup(data: bytes) -> str | None:
    """Which UTF-16, if any, where ASCII (markup, western text) has a zero in every second byte, and there alone."""
    sample = data[:_SAMPLE_BYTES]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    least = max(4, 0.15 * len(sample))
    if odd >= least and odd > 20 * even:
        return "utf-16-le"
    return "utf-16-be" if even >= least and even > 20 * odd else None


def _utf_16_of_chinese(data: bytes) -> str | None:
    """Which UTF-16, if any, where some zeros (of spaces, line ends) stand among what decodes to common characters."""
    sample = data[: _SAMPLE_BYTES if len(data) > _SAMPLE_BYTES else len(data) // 2 * 2]
    if sample.count(0) < max(2, 0.002 * len(sample)):
        return None
    for encoding in ("utf-16-le", "utf-16-be"):
        text = sample.decode(encoding, "replace")
        if len(_COMMON.findall(text)) >= MIN_COMMON_SHARE * len(text):
            return encoding
    return None
