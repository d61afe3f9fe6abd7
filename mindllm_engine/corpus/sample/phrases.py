"""Small helpers for building sentences: capitals, articles, lists of things, numbers in words, rows of a table.

Everything the generators of the sample corpus share, and nothing about any one source.
"""

import random

_ONES_EN = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_ONES_EN += ["ten", "eleven", "twelve", "thirteen", "fourteen"]
_ONES_EN += ["fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS_EN = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_DIGITS_ZH = "零一二三四五六七八九"


def paired_rows(text: str) -> list[tuple[list[str], list[str]]]:
    """Read a table whose rows take two lines, English and then Chinese, with fields separated by `|`."""
    rows = [[field.strip() for field in line.split("|")] for line in text.strip().splitlines()]
    return list(zip(rows[::2], rows[1::2], strict=True))


def capitalised(sentence: str) -> str:
    """The sentence with its first letter in upper case and the rest untouched."""
    return sentence[:1].upper() + sentence[1:]


def with_article(noun: str) -> str:
    """`a cat`, `an owl`. By the first letter, which is right for every noun in the tables."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def listed_en(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def listed_zh(items: list[str]) -> str:
    """`甲`, `甲和乙`, `甲、乙和丙`."""
    return items[0] if len(items) == 1 else "、".join(items[:-1]) + "和" + items[-1]


def number_en(value: int) -> str:
    """A number from 0 to 9999 in English words, `two hundred and five`."""
    if value < 20:
        return _ONES_EN[value]
    if value < 100:
        tens, ones = divmod(value, 10)
        return _TENS_EN[tens] + (f"-{_ONES_EN[ones]}" if ones else "")
    if value < 1000:
        hundreds, rest = divmod(value, 100)
        return f"{_ONES_EN[hundreds]} hundred" + (f" and {number_en(rest)}" if rest else "")
    thousands, rest = divmod(value, 1000)
    joint = " and " if rest < 100 else " "
    return f"{number_en(thousands)} thousand" + (joint + number_en(rest) if rest else "")


def number_zh(value: int) -> str:
    """A number from 0 to 9999 in Chinese numerals as they are read, `二百零五`, `十二`."""
    if value == 0:
        return "零"
    text, gap = "", False
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = value // unit % 10
        if digit == 0:
            gap = bool(text)
            continue
        text += ("零" if gap else "") + _DIGITS_ZH[digit] + name
        gap = False
    return text[1:] if text.startswith("一十") else text


def count_zh(value: int) -> str:
    """A number from 1 to 9999 in front of a measure word: two is `两`, all others as `number_zh`."""
    return "两" if value == 2 else number_zh(value)


def tell(rng: random.Random, beats: list[list[str]], slots: dict[str, str]) -> list[str]:
    """One wording of each beat of a plot, its `{slots}` filled; an English sentence gets its capital letter."""
    return [capitalised(rng.choice(wordings).format(**slots)) for wordings in beats]
