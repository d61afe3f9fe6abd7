"""Two thousand texts with and without personal data, generated: what should be replaced in them is known.

Nothing here looks at the scanner. Numbers are made by the rules of their issuers (check digits, prefixes, lengths);
each stands in a sentence, Chinese or English, with or without spaces around it. Traps are what looks alike and must
stay. The benchmark and the test use the same cases.
"""

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass

KINDS = ("id_number", "phone", "bank_card", "email", "ip")
CASES = 2000


@dataclass(frozen=True)
class Case:
    """A text.

    Attributes:
        form: what was generated, such as "mobile" or "trap: ISBN".
        spans: (kind, begin, end) in characters, in order.
    """

    form: str
    text: str
    spans: tuple[tuple[str, int, int], ...]


Form = Callable[[random.Random], str]


def digits(chooser: random.Random, count: int, first: str = "0123456789") -> str:
    return chooser.choice(first) + "".join(chooser.choices("0123456789", k=count - 1))


def full_width(number: str) -> str:
    return number.translate({ord(digit): ord(digit) - 0x30 + 0xFF10 for digit in "0123456789"})


# -- What should be found ---

REGIONS = ("110101", "310115", "440305", "330106", "510104", "420111", "320583", "610113", "150102", "650104", "810000")


def id_check(body: str) -> str:
    return "10X98765432"[sum(int(digit) * pow(2, 17 - i, 11) for i, digit in enumerate(body)) % 11]


def id_number(chooser: random.Random) -> str:
    date = f"{chooser.randint(1930, 2019)}{chooser.randint(1, 12):02}{chooser.randint(1, 28):02}"
    body = chooser.choice(REGIONS) + date + digits(chooser, 3)
    return body + id_check(body)


def id_lower(chooser: random.Random) -> str:
    while not (number := id_number(chooser)).endswith("X"):
        pass
    return number.lower()


def id_spaced(chooser: random.Random) -> str:
    number = id_number(chooser)
    return f"{number[:6]} {number[6:14]} {number[14:]}"


MOBILE = (
    "134",
    "135",
    "138",
    "139",
    "147",
    "150",
    "159",
    "166",
    "173",
    "177",
    "180",
    "186",
    "189",
    "191",
    "198",
    "199",
)


def mobile(chooser: random.Random) -> str:
    return chooser.choice(MOBILE) + digits(chooser, 8)


def grouped_mobile(chooser: random.Random) -> str:
    number, mark = mobile(chooser), chooser.choice(" -")
    return mark.join((number[:3], number[3:7], number[7:]))


def prefixed_mobile(chooser: random.Random) -> str:
    prefix = chooser.choice(
        ("+86", "+86 ", "+86-", "86-", "0086 ", "0086-", "(+86)", "(+86) ", "（+86）", "86 ", "+86 1")
    )
    if prefix == "+86 1":
        return "+86 " + grouped_mobile(chooser)
    return prefix + (grouped_mobile(chooser) if chooser.random() < 0.3 else mobile(chooser))


AREAS = ("010", "021", "020", "022", "023", "025", "027", "028", "029")
LONG_AREAS = ("0755", "0571", "0512", "0531", "0431", "0871", "0991", "0411", "0592", "0311")


def landline(chooser: random.Random) -> str:
    if chooser.random() < 0.5:
        area, local = chooser.choice(AREAS), digits(chooser, 8, "25678")
    else:
        area, local = chooser.choice(LONG_AREAS), digits(chooser, chooser.choice((7, 8)), "25678")
    if len(local) == 8 and chooser.random() < 0.25:
        local = local[:4] + chooser.choice(" -") + local[4:]
    form = chooser.choice(("{}-{}", "{}-{}", "({}){}", "（{}）{}", "({}) {}", "+86-{}-{}", "+86 {} {}"))
    if form.startswith("+"):
        area = area[1:]
    extension = f"-{digits(chooser, 3, '12345678')}" if form == "{}-{}" and chooser.random() < 0.15 else ""
    return form.format(area, local) + extension


def american(chooser: random.Random) -> str:
    area = digits(chooser, 1, "23456789") + chooser.choice("02345678") + digits(chooser, 1)
    middle = digits(chooser, 1, "23456789") + chooser.choice("02345678") + digits(chooser, 1)
    form = chooser.choice(
        ("({}) {}-{}", "{}-{}-{}", "{}.{}.{}", "+1 {} {} {}", "+1-{}-{}-{}", "1-{}-{}-{}", "+1{}{}{}")
    )
    return form.format(area, middle, digits(chooser, 4))


# Country codes and, for each, how many digits of a number and how people group them (x for a digit).
PLANS = (
    "+44 20 xxxx xxxx",
    "+44 7xxx xxxxxx",
    "+442xxxxxxxxx",
    "+49 30 xxxxxxx",
    "+49 151 xxxxxxxx",
    "+33 6 xx xx xx xx",
    "+81 3-xxxx-xxxx",
    "+81-90-xxxx-xxxx",
    "+82 10-xxxx-xxxx",
    "+65 6xxx xxxx",
    "+852 2xxx xxxx",
    "+886 2 xxxx xxxx",
    "+61 4xx xxx xxx",
    "+91 98xxx xxxxx",
    "+919xxxxxxxxx",
    "+7 495 xxx-xx-xx",
    "+55 11 9xxxx-xxxx",
    "+34 6xx xxx xxx",
)


def international(chooser: random.Random) -> str:
    return "".join(digits(chooser, 1) if mark == "x" else mark for mark in chooser.choice(PLANS))


def luhn_check(body: str) -> str:
    total = 0
    for place, digit in enumerate(reversed(body)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value // 10 + value % 10
    return str(-total % 10)


CARDS = (
    ("622202", 19),
    ("622848", 19),
    ("621700", 19),
    ("625912", 16),
    ("622588", 16),
    ("4", 16),
    ("51", 16),
    ("55", 16),
    ("2301", 16),
    ("37", 15),
    ("34", 15),
    ("3530", 16),
    ("6011", 16),
)


def bank_card(chooser: random.Random) -> str:
    prefix, length = chooser.choice(CARDS)
    body = prefix + digits(chooser, length - len(prefix) - 1)
    return body + luhn_check(body)


def grouped_card(chooser: random.Random) -> str:
    card, mark = bank_card(chooser), chooser.choice("  -")
    if len(card) == 15:
        return mark.join((card[:4], card[4:10], card[10:]))
    return mark.join(card[i : i + 4] for i in range(0, len(card), 4))


NAMES = (
    "zhang.wei",
    "li_na88",
    "john.smith",
    "m-tanaka",
    "wang2008",
    "13800138000",
    "anna+news",
    "service",
    "x1",
    "QQ123",
)
DOMAINS = (
    "163.com",
    "qq.com",
    "gmail.com",
    "pku.edu.cn",
    "uni-heidelberg.de",
    "mail.corp.co.uk",
    "outlook.com",
    "tech.io",
)


def email(chooser: random.Random) -> str:
    return f"{chooser.choice(NAMES)}@{chooser.choice(DOMAINS)}"


def ipv4(chooser: random.Random) -> str:
    first = chooser.choice((8, 14, 36, 42, 58, 61, 101, 114, 123, 140, 180, 202, 218, 221))
    return f"{first}.{chooser.randint(20, 255)}.{chooser.randint(0, 255)}.{chooser.randint(1, 254)}"


def ipv6(chooser: random.Random) -> str:
    groups = [f"{chooser.randint(0x1000, 0xFFFF):x}" for _ in range(8)]
    groups[0] = chooser.choice(("2001", "2409", "240e", "2a02", "2606"))
    if chooser.random() < 0.5:
        return ":".join(groups[:4]) + "::" + f"{chooser.randint(1, 0xFFFF):x}"
    return ":".join(groups)


FOUND: dict[str, tuple[str, Form]] = {
    "identity number": ("id_number", id_number),
    "identity number, small x": ("id_number", id_lower),
    "identity number, spaced": ("id_number", id_spaced),
    "identity number, full-width": ("id_number", lambda chooser: full_width(id_number(chooser))),
    "mobile": ("phone", mobile),
    "mobile in groups": ("phone", grouped_mobile),
    "mobile with prefix": ("phone", prefixed_mobile),
    "mobile, full-width": ("phone", lambda chooser: full_width(mobile(chooser))),
    "landline": ("phone", landline),
    "North American": ("phone", american),
    "international": ("phone", international),
    "bank card": ("bank_card", bank_card),
    "bank card in groups": ("bank_card", grouped_card),
    "e-mail": ("email", email),
    "IPv4": ("ip", ipv4),
    "IPv6": ("ip", ipv6),
}

AROUND = (
    ("请记录：", "，谢谢。"),
    ("他留下的是", "，我抄了下来"),
    ("联系人王先生", "（工作日）"),
    ("信息如下\n", "\n以上"),
    ("资料:", ";完"),
    ("Please use ", " before Friday."),
    ("It was ", ", she said."),
    ("Contact (", ")"),
    ("- ", "\n"),
    ("", ""),
    ("“", "”"),
    ("见附件。", "。另附说明"),
    ("<td>", "</td>"),
    ('{"value": "', '"}'),
    ("张三、", "、李四"),
    ("一共有两个，第一个在这里：", "/见下"),
)

# -- What should stay ---


def wrong_id(chooser: random.Random) -> str:
    number = id_number(chooser)
    return number[:-1] + chooser.choice([digit for digit in "0123456789" if digit != number[-1]])


def impossible_id(chooser: random.Random) -> str:
    body = (
        chooser.choice(REGIONS) + chooser.choice(("19991301", "20010230", "18000101", "20230431")) + digits(chooser, 3)
    )
    return body + id_check(body)


def foreign_region(chooser: random.Random) -> str:
    body = chooser.choice(("990101", "000000", "160101", "720304", "590011")) + id_number(chooser)[6:17]
    return body + id_check(body)


def wrong_card(chooser: random.Random) -> str:
    card = bank_card(chooser)
    return card[:-1] + chooser.choice([digit for digit in "0123456789" if digit != card[-1]])


def isbn_13(chooser: random.Random) -> str:
    body = chooser.choice(("978", "979")) + digits(chooser, 9)
    check = str(-sum(int(digit) * (3 if i % 2 else 1) for i, digit in enumerate(body)) % 10)
    if chooser.random() < 0.5:
        return body + check
    return f"{body[:3]}-{body[3]}-{body[4:8]}-{body[8:12]}-{check}"


def isbn_10(chooser: random.Random) -> str:
    return f"{chooser.choice('0137')}-{digits(chooser, 3)}-{digits(chooser, 5)}-{chooser.choice('0123456789X')}"


def date_time(chooser: random.Random) -> str:
    day = f"{chooser.randint(1990, 2025)}-{chooser.randint(1, 12):02}-{chooser.randint(1, 28):02}"
    clock = f"{chooser.randint(0, 23):02}:{chooser.randint(0, 59):02}:{chooser.randint(0, 59):02}"
    return chooser.choice(
        (
            day,
            f"{day} {clock}",
            f"{day}T{clock}+08:00",
            f"{day}T{clock}.123456Z",
            day.replace("-", ""),
            day.replace("-", "/"),
            day.replace("-", "."),
            (day + clock).replace("-", "").replace(":", ""),
            f"{day[:4]}年{day[5:7]}月{day[8:]}日{clock}",
        )
    )


def order(chooser: random.Random) -> str:
    number = chooser.choice(
        (mobile(chooser), digits(chooser, 12, "123"), f"2023{digits(chooser, 16)}", digits(chooser, 10))
    )
    words = ("订单号：{}", "订单编号{}", "运单号 {}", "order #{}", "Order No. {}", "流水号:{}", "invoice {}", "SKU {}")
    return chooser.choice(words).format(number)


def money(chooser: random.Random) -> str:
    number = mobile(chooser)
    return chooser.choice(("¥{}", "{}元", "${}", "{} USD", "RMB {}", "{}.50", "{}万元", "€{}", "约{}美元")).format(
        number
    )


def hexadecimal(chooser: random.Random) -> str:
    return f"{chooser.getrandbits(chooser.choice((128, 160, 256))):x}"


def in_word(chooser: random.Random) -> str:
    form = chooser.choice(
        ("IMG_{}.jpg", "user{}", "{}abc", "a{}", "item-{}", "0x{}", "{}_v2", "VID{}", "sn{}x", "{}.png")
    )
    return form.format(mobile(chooser))


def url(chooser: random.Random) -> str:
    forms = (
        "https://www.mall.cn/item/{}.html",
        "http://t.cn/?id={}&x=1",
        "https://news.site.com/2023/{}/",
        "www.shop.com/p/{}",
        "https://a.b.org/{}-{}",
        "bbs.site.net/thread?tid={}",
    )
    return chooser.choice(forms).format(mobile(chooser), mobile(chooser))


def decimal(chooser: random.Random) -> str:
    return chooser.choice(("0.{}", "3.{}", "1.{}e-10", "-12.{}", "{}.25", "{}e5")).format(mobile(chooser))


def version(chooser: random.Random) -> str:
    four = ".".join(str(chooser.randint(0, 60)) for _ in range(4))
    forms = (
        "v{}",
        "version {}",
        "版本{}",
        "版本号：{}",
        "Chrome/{}",
        "libfoo-{}",
        "Ver. {}",
        "foo=={}",
        "release {}",
        "{}-beta",
    )
    return chooser.choice(forms).format(four)


def section(chooser: random.Random) -> str:
    return ".".join(str(chooser.randint(1, 9)) for _ in range(4)) + " "


def not_ipv4(chooser: random.Random) -> str:
    return chooser.choice(
        ("1.3.6.1.4.1.311.60", "256.300.1.2", "58.0.3029.110", "01.02.03.04", "114.37.25", "8.35.200.7.91")
    )


def coordinates(chooser: random.Random) -> str:
    return f"{chooser.uniform(20, 50):.7f}, {chooser.uniform(80, 130):.{chooser.randint(4, 9)}f}"


def product(chooser: random.Random) -> str:
    left, right = chooser.randint(10**9, 10**10), mobile(chooser)
    return chooser.choice((f"{left} + {right}", f"{right} * 3", f"{right} = {left}", f"{left}×{right}", f"2^{right}"))


RESERVED = (
    "user@example.com",
    "you@yourdomain.com",
    "a@b.test",
    "git@github.com",
    "127.0.0.1",
    "192.168.1.254",
    "10.0.31.7",
)
NOT_EMAIL = (
    "logo@2x.png",
    "vue@2.6.14",
    "@app.route",
    "user@host",
    "a @ b.com",
    "foo@bar.",
    "@zhang_san",
    "react@next",
)
COLONS = (
    "00:1A:2B:3C:4D:5E",
    "std::vector",
    "12:34:56",
    "a::b::c",
    "de:ad:be:ef:12:34:56:78",
    "fe80::1",
    "Foo::Bar",
    "3:2",
)
NUMBERS = (
    "1,381,234,567",
    "12 345 678",
    "1990-2020",
    "（2019）京01民终12345号",
    "ISSN 1234-5678",
    "2310.15777",
    "沪A12345",
)

TRAPS: dict[str, Form] = {
    "order number": order,
    "date": date_time,
    "version": version,
    "section": section,
    "ISBN-13": isbn_13,
    "ISBN-10": isbn_10,
    "timestamp": lambda chooser: str(chooser.randint(946684800, 1893456000) * chooser.choice((1, 1000))),
    "UUID": lambda chooser: str(uuid.UUID(int=chooser.getrandbits(128), version=4)),
    "hash": hexadecimal,
    "money": money,
    "coordinates": coordinates,
    "decimal": decimal,
    "number in a word": in_word,
    "URL": url,
    "product": product,
    "wrong identity number": wrong_id,
    "impossible identity number": impossible_id,
    "identity number of no region": foreign_region,
    "wrong bank card": wrong_card,
    "no country code": lambda chooser: f"+{chooser.choice(('28', '83', '89', '210', '999'))} {digits(chooser, 9)}",
    "long number": lambda chooser: digits(chooser, chooser.choice((12, 17, 20, 24, 40)), "79"),
    "no IPv4 address": not_ipv4,
    "reserved": lambda chooser: chooser.choice(RESERVED),
    "no e-mail address": lambda chooser: chooser.choice(NOT_EMAIL),
    "colons": lambda chooser: chooser.choice(COLONS),
    "numbers": lambda chooser: chooser.choice(NUMBERS),
}


def generate_cases(seed: int = 0, count: int = CASES) -> list[Case]:
    """Half of them with something to find; a tenth of those with two things, the second after a trap."""
    chooser = random.Random(seed)
    cases = []
    for number in range(count):
        text, spans = "", []
        if number % 2 == 0:
            form = list(FOUND)[number // 2 % len(FOUND)]
            forms = (
                [form] if chooser.random() < 0.9 else [form, chooser.choice(list(TRAPS)), chooser.choice(list(FOUND))]
            )
        else:
            forms = [list(TRAPS)[number // 2 % len(TRAPS)]]
        for part in forms:
            before, after = chooser.choice(AROUND)
            made = FOUND[part][1](chooser) if part in FOUND else TRAPS[part](chooser)
            text += before
            if part in FOUND:
                spans.append((FOUND[part][0], len(text), len(text) + len(made)))
            text += made + after + (" | " if len(forms) > 1 else "")
        name = forms[0] if forms[0] in FOUND else f"trap: {forms[0]}"
        cases.append(Case(name, text, tuple(spans)))
    return cases


def spans_between(text: str, replaced: str, tokens: dict[str, str]) -> list[tuple[str, int, int]]:
    """What was replaced in a text that holds none of the tokens itself: (kind, begin, end), `tokens` by kind."""
    spans, at = [], 0
    while True:
        places = [(replaced.find(token), kind) for kind, token in tokens.items() if token in replaced]
        if not places:
            assert text[at:] == replaced
            return spans
        place, kind = min(places)
        assert text[at : at + place] == replaced[:place]
        replaced = replaced[place + len(tokens[kind]) :]
        # What follows up to the next token tells where the replaced part ends.
        following = min((replaced.find(token) for token in tokens.values() if token in replaced), default=len(replaced))
        begin = at + place
        is_last = following == len(replaced)
        at = len(text) - following if is_last else text.index(replaced[:following], begin + 1)
        spans.append((kind, begin, at))


@dataclass
class Score:
    """How well a kind was found; a span counts only if it is exactly that."""

    right: int = 0
    wrong: int = 0
    missed: int = 0

    @property
    def precision(self) -> float:
        return self.right / max(1, self.right + self.wrong)

    @property
    def recall(self) -> float:
        return self.right / max(1, self.right + self.missed)


def score(cases: list[Case], found: list[list[tuple[str, int, int]]]) -> dict[str, Score]:
    """By kind."""
    scores = {kind: Score() for kind in KINDS}
    for case, spans in zip(cases, found, strict=True):
        for span in spans:
            if span in case.spans:
                scores[span[0]].right += 1
            else:
                scores[span[0]].wrong += 1
        for span in case.spans:
            scores[span[0]].missed += span not in spans
    return scores
