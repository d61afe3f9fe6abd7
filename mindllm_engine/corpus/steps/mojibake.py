"""Garbled text: finding it, and undoing the wrong decoding where no byte was lost.

Four mistakes are common. UTF-8 read as Latin-1 or Windows-1252 ("ä¸\xadæ–‡", "donâ€™t") is found by the sequences it
leaves and mended by ftfy. UTF-8 read as GBK ("涓枃") and GBK read as Latin-1 ("ÖÐÎÄ") are mended by reading the same
bytes the right way. Where the bytes are gone (U+FFFD, 锟斤拷, 烫烫烫, private use) nothing can be done.
"""

import re
from enum import Enum

from mindllm_engine._native import TextProfile, profile_text

# Longer ones are not worth the time: ftfy reads 2.5 MB/s.
LONGEST_MENDED = 1_000_000
# Of the characters that are not ASCII, those above U+07FF after reading the bytes of UTF-8 rightly, if GBK was wrong.
UTF8_AS_GBK_SHARE = 0.3
# What the first bytes of ’ “ — … become. No modern text has it, and one in an English text tells enough.
QUOTE_AS_GBK, FEW_HAN_SHARE = "\u9225", 0.1
# Of the characters that are not ASCII, those of Latin-1, if GBK was read as that.
HIGH_LATIN_SHARE = 0.8
# Of the characters of a text that was GBK, those that are Chinese after mending.
CHINESE_SHARE = 0.3
# Characters looked at for UTF-8 read as GBK: first a few, then, if they give cause, more.
FIRST_SAMPLE, SECOND_SAMPLE, WINDOWS = 256, 4096, 8
THREE_BYTES = re.compile("[\u0800-\uffff]")


class Garbled(Enum):
    """How a text was garbled."""

    LOST = "characters lost"
    UTF8_AS_LATIN = "UTF-8 read as Latin-1"
    UTF8_AS_GBK = "UTF-8 read as GBK"
    GBK_AS_LATIN = "GBK read as Latin-1"


def find_garbled(text: str, profile: TextProfile, max_lost_share: float) -> Garbled | None:
    """What is wrong with a text, if anything is.

    Args:
        max_lost_share: of a text's characters, how many may be lost.
    """
    if profile.lost > max_lost_share * profile.characters:
        return Garbled.LOST
    not_ascii = profile.characters - profile.ascii
    mostly_latin = profile.high_latin > HIGH_LATIN_SHARE * max(not_ascii, 0.25 * profile.characters)
    if mostly_latin and profile.utf8_as_latin < 0.5 * profile.high_latin:
        return Garbled.GBK_AS_LATIN
    if profile.utf8_as_latin:
        return Garbled.UTF8_AS_LATIN
    if profile.han and is_utf8_as_gbk(text, profile):
        return Garbled.UTF8_AS_GBK
    return None


def mend(text: str, garbled: Garbled, max_lost_share: float) -> str | None:
    """The text as it was before, or None where that cannot be found out."""
    if garbled is Garbled.LOST or len(text) > LONGEST_MENDED:
        return None
    if garbled is Garbled.UTF8_AS_LATIN:
        mended = mend_by_ftfy(text)
    elif garbled is Garbled.UTF8_AS_GBK:
        mended = text.encode("gb18030").decode("utf-8", errors="replace")
    else:
        mended = mend_gbk(text)
    profile = profile_text(mended)
    again = find_garbled(mended, profile, max_lost_share)
    if again is Garbled.UTF8_AS_LATIN and profile.utf8_as_latin <= max_lost_share * profile.characters:
        again = None  # a few such sequences are what the text is about, or "Â°" in a page that mixes encodings
    if again is not None or (garbled is Garbled.GBK_AS_LATIN and profile.han < CHINESE_SHARE * profile.characters):
        return None
    return mended


def mend_by_ftfy(text: str) -> str:
    """UTF-8 read as one of the single-byte encodings, line by line, so that one bad line spoils no other."""
    from ftfy import fix_encoding  # here, because few documents need it

    return "\n".join(map(fix_encoding, text.split("\n")))


def mend_gbk(text: str) -> str:
    """GBK read as Latin-1 or Windows-1252. Characters that neither has are replaced."""
    data = b"".join(
        char.encode("latin-1") if ord(char) < 0x100 else char.encode("cp1252", errors="replace") for char in text
    )
    return data.decode("gb18030", errors="replace")


def is_utf8_as_gbk(text: str, profile: TextProfile) -> bool:
    """Whether a text with Chinese characters is UTF-8 read as GBK."""
    if profile.han < FEW_HAN_SHARE * profile.characters and QUOTE_AS_GBK in text:
        return True
    return (
        utf8_as_gbk_share(text, FIRST_SAMPLE) > UTF8_AS_GBK_SHARE / 2
        and utf8_as_gbk_share(text, SECOND_SAMPLE) > UTF8_AS_GBK_SHARE
    )


def utf8_as_gbk_share(text: str, sample: int) -> float:
    """Of the characters that are not ASCII, how many there are if their GBK bytes are read as UTF-8: 2/3, where that is
    what they were. It hardly ever works on text that was read rightly.

    Args:
        sample: how many characters to look at, from all over the text.
    """
    if len(text) > sample:
        length = sample // WINDOWS
        starts = range(0, len(text) - length, max(1, (len(text) - length) // (WINDOWS - 1)))
        text = "".join(text[start : start + length] for start in starts)
    not_ascii = len(text) - len(text.encode("ascii", errors="ignore"))
    if not not_ascii:
        return 0.0
    read = text.encode("gb18030", errors="ignore").decode("utf-8", errors="ignore")
    return len(THREE_BYTES.findall(read)) / not_ascii
