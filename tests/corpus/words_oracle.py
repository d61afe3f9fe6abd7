"""The rule of csrc/words.hpp once more, by Python's own knowledge of Unicode: for texts of the blocks in ALPHABET."""

import unicodedata
from itertools import groupby

ALPHABET = (
    "".join(map(chr, range(0x180)))
    + "αβγΩ АБВгд אב ا가나 e\u0301"
    + "的一是不了人我在有他花间集鿿㐀𠀀々〇ひらがなカタカナーㄅ"
    + "，。！？、；：「」《》（）…—·～“”‘’　０９ＡＺａｚ＋％￥"
    + "\u2002\u2028\u200b€→∑≤■★☺😀👍🏽\ufeff\ufffd"
)


def kind(character: str) -> str:
    if character.isspace():
        return "space"
    name = unicodedata.name(character, "")
    if (
        name.startswith(("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "HIRAGANA", "KATAKANA", "BOPOMOFO"))
        or character in "々〇ー"
    ):
        return "ideograph"
    return "letter" if unicodedata.category(character)[0] in "LMN" or character == "_" else "other"


def split_words(text: str) -> list[str]:
    keys = []
    for place, character in enumerate(text):
        of_kind = kind(character)
        keys.append((of_kind, {"ideograph": place, "other": character}.get(of_kind)))
    words = []
    for (of_kind, _), group in groupby(zip(keys, text, strict=True), key=lambda pair: pair[0]):
        if of_kind != "space":
            words.append("".join(character for _, character in group))
    return words
