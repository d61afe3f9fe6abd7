"""What goes wrong with pages of the web, made on purpose: each function makes the text of one faulty document from a
random generator, and from a clean document where the fault is one of copying or reading.

Names, numbers and addresses are invented. Nothing here looks at how the pipeline recognises a fault.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mindllm_engine.corpus.special_tokens import BANK_CARD, EMAIL, ID_NUMBER, IP, PHONE


@dataclass(frozen=True)
class Secret:
    """Personal data in a document.

    Attributes:
        kind: "phone".
        text: what must not be there any more.
        token: what must be there in its place.
        sentence: around it, as it was inserted.
    """

    kind: str
    text: str
    token: str
    sentence: str


# --- mojibake: a text read with another encoding than it was written in.

# Where Windows-1252 has no character, programs take Latin-1's.
_CP1252 = {byte: bytes([byte]).decode("cp1252", errors="ignore") or chr(byte) for byte in range(0x80, 0xA0)}
MOJIBAKE_ZH = ("utf-8 as latin-1", "utf-8 as cp1252", "utf-8 as gbk", "gbk as latin-1", "锟斤拷")
MOJIBAKE_EN = ("utf-8 as latin-1", "utf-8 as cp1252")


def mojibake(text: str, kind: str) -> str:
    """The text as a program with a wrong idea of its encoding reads it."""
    if kind == "utf-8 as latin-1":
        return text.encode().decode("latin-1")
    if kind == "utf-8 as cp1252":
        return text.encode().decode("latin-1").translate(_CP1252)
    if kind == "utf-8 as gbk":
        return text.encode().decode("gbk", errors="replace")
    as_gbk = text.encode("gbk", errors="replace")
    if kind == "gbk as latin-1":
        return as_gbk.decode("latin-1")
    assert kind == "锟斤拷"
    return as_gbk.decode("utf-8", errors="replace").encode().decode("gbk", errors="replace")


# --- duplicates


def edited(text: str, rate: float, lang: str, chooser: random.Random) -> str:
    """So large a share of the characters (zh) or words (other languages) replaced, removed or doubled, one at least,
    each at a place of its own. What replaces them comes from the same text."""
    units = list(text) if lang == "zh" else re.split(r"(\s+)", text)
    places = [place for place, unit in enumerate(units) if unit.strip()]
    originals = [units[place] for place in places]
    for place in chooser.sample(places, max(1, round(rate * len(places)))):
        way = chooser.randrange(3)
        if way == 0:
            others = [unit for unit in chooser.choices(originals, k=8) if unit != units[place]]
            units[place] = others[0] if others else ""
        else:
            units[place] = "" if way == 1 else units[place] + (" " if lang != "zh" else "") + units[place]
    return "".join(units)


# --- personal data


def id_number(chooser: random.Random) -> str:
    """18 characters: region, date of birth, order, check character (GB 11643)."""
    region = chooser.choice(["110105", "310104", "440305", "320102", "510107", "420106", "330106", "610113"])
    date = f"{chooser.randint(1950, 2004)}{chooser.randint(1, 12):02}{chooser.randint(1, 28):02}"
    body = f"{region}{date}{chooser.randint(1, 999):03}"
    remainder = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(body)) % 11
    return body + "10X98765432"[remainder]


def mobile_phone(chooser: random.Random) -> str:
    """A Chinese one, in one of the ways in which people write it."""
    prefix = chooser.choice(["138", "139", "150", "159", "176", "186", "188", "199"])
    middle, last = f"{chooser.randrange(10000):04}", f"{chooser.randrange(10000):04}"
    separator = chooser.choice(["", "", "-", " "])
    return chooser.choice(["", "", "+86 ", "+86-"]) + separator.join([prefix, middle, last])


def american_phone(chooser: random.Random) -> str:
    area, exchange = (f"{chooser.choice('23456789')}{chooser.randint(2, 9)}{chooser.randrange(10)}" for _ in range(2))
    line = f"{chooser.randrange(10000):04}"
    return chooser.choice([f"({area}) {exchange}-{line}", f"{area}-{exchange}-{line}", f"+1 {area} {exchange} {line}"])


def bank_card(chooser: random.Random) -> str:
    """UnionPay (19 digits), Visa or Mastercard (16), with Luhn's check digit; in groups of four or not."""
    prefix, length = chooser.choice([("622202", 19), ("621700", 19), ("453275", 16), ("541333", 16)])
    body = prefix + "".join(str(chooser.randrange(10)) for _ in range(length - 1 - len(prefix)))
    total = 0
    for place, digit in enumerate(reversed(body)):
        total += int(digit) if place % 2 else sum(divmod(2 * int(digit), 10))
    digits = body + str(-total % 10)
    return " ".join(re.findall(".{1,4}", digits)) if chooser.random() < 0.4 else digits


def email(chooser: random.Random) -> str:
    name = chooser.choice(["li.wei", "zhangmin", "wang_fang", "j.miller", "anna", "t.nguyen", "chenhao", "mkeller"])
    hosts = [
        "lanhua-mail.cn",
        "huiyuan-net.com.cn",
        "nordwind-post.de",
        "papertown.org",
        "bluegum.net.au",
        "qimail.com",
    ]
    host = chooser.choice(hosts)
    return f"{name}{chooser.randrange(1, 10000)}@{host}"


def ip_address(chooser: random.Random) -> str:
    """A public one, of version 4 or (one in four) 6."""
    if chooser.random() < 0.25:
        return "2a02:" + ":".join(f"{chooser.randrange(1, 1 << 16):x}" for _ in range(7))
    return f"{chooser.choice([23, 45, 61, 83, 114, 139, 185, 218])}." + ".".join(
        str(chooser.randint(1, 254)) for _ in range(3)
    )


_SENTENCES = {
    "zh": {
        "id number": ["我的身份证号是{}，请帮我查一下。", "被告人身份证号码：{}", "（身份证{}）"],
        "phone": ["有意者请联系{}。", "电话：{}", "手机号{}，微信同号。"],
        "bank card": ["请把钱汇到卡号{}，谢谢。", "银行卡号：{}", "收款账户{}（王女士）。"],
        "e-mail": ["来信请寄{}。", "邮箱：{}", "我的邮箱是{}，欢迎来信。"],
        "ip": ["登录地址为{}。", "服务器IP：{}", "来自{}的网友发表评论："],
    },
    "en": {
        "id number": ["Her Chinese identity number is {}.", "ID card: {}"],
        "phone": ["Call me at {} after six.", "Phone: {}", "My number is {}, leave a message."],
        "bank card": ["Please charge it to card {}.", "Card number: {}"],
        "e-mail": ["Write to {} for details.", "Contact: {}", "Mail <{}> if it breaks."],
        "ip": ["The request came from {}.", "Last login from {} on Monday.", "Server address: {}"],
    },
}
_MAKERS = {
    "id number": (id_number, ID_NUMBER),
    "bank card": (bank_card, BANK_CARD),
    "e-mail": (email, EMAIL),
    "ip": (ip_address, IP),
}


def with_secrets(text: str, lang: str, chooser: random.Random) -> tuple[str, tuple[Secret, ...]]:
    """The text with one to three sentences of different kinds of personal data between its lines."""
    secrets = []
    for kind in chooser.sample(sorted(_SENTENCES[lang]), chooser.randint(1, 3)):
        phone = mobile_phone if lang == "zh" or chooser.random() < 0.2 else american_phone
        maker, token = _MAKERS.get(kind, (phone, PHONE))
        data = maker(chooser)
        secrets.append(Secret(kind, data, token, chooser.choice(_SENTENCES[lang][kind]).format(data)))
    return inserted(text, [secret.sentence for secret in secrets], chooser), tuple(secrets)


def inserted(text: str, passages: Sequence[str], chooser: random.Random) -> str:
    """Passages as lines of their own, at random places between the lines of a text, or its sentences where it is one
    line."""
    pieces = re.split(r"(?<=\n)", text)
    if len(pieces) < 4:
        pieces = re.split(r"(?<=[。！？\n])|(?<=[.!?] )", text)
    for passage in passages:
        place = chooser.randint(0, len(pieces))
        before = "" if place == 0 or pieces[place - 1].endswith("\n") else "\n"
        pieces.insert(place, f"{before}{passage}\n")
    return "".join(pieces)


# --- pages that nobody wants to read

_ADS = {
    "zh": (
        [
            "全场{n}折起",
            "限时特惠，仅剩{n}天",
            "老客户介绍新客户立减{n}00元",
            "厂家直销，质量保证",
            "加微信领取{n}元红包",
            "免费试用，无效退款",
            "前{n}名下单赠送大礼包",
            "专业团队，十年品质",
            "货到付款，全国包邮",
            "诚招代理，月入过万不是梦",
            "错过今天再等一年",
            "名额有限，先到先得",
            "名牌正品，假一赔十",
            "一对一服务，当天见效",
        ],
        [
            "减肥茶",
            "办公室装修",
            "二手车贷款",
            "英语速成班",
            "瓷砖美缝",
            "生发液",
            "搬家服务",
            "代开发票",
            "空调维修",
            "减压按摩椅",
            "网店推广",
            "祛斑霜",
            "考试答案",
            "刷单兼职",
        ],
        [
            "咨询热线：{phone}",
            "微信：vx{n}{n}88{n}",
            "QQ：{qq}",
            "抢购电话{phone}（同微信）",
            "加Q群{qq}有惊喜",
            "官网：www.shop{n}{n}{n}.cn",
        ],
    ),
    "en": (
        [
            "Up to {n}0% off everything",
            "Only {n} days left",
            "Order now and get {n} free gifts",
            "100% money back guarantee",
            "No credit check, no questions asked",
            "Lowest price on the internet",
            "Click here to claim your bonus",
            "Limited time offer, act fast",
            "Thousands of happy customers",
            "Free shipping worldwide",
            "Work from home and earn ${n},000 a week",
            "Buy one get one free",
            "Call today, results guaranteed",
            "Risk free trial for {n} days",
        ],
        [
            "slimming tea",
            "payday loans",
            "replica watches",
            "web traffic",
            "carpet cleaning",
            "hair growth serum",
            "car insurance",
            "essay writing service",
            "roof repair",
            "brain pills",
            "designer handbags",
            "cheap flights",
            "online degree",
        ],
        [
            "Call {phone}",
            "WhatsApp {phone}",
            "Visit www.best-deals-{n}{n}.biz",
            "Text DEAL to {phone}",
            "Mail sales{n}@deals-{n}.biz",
        ],
    ),
}


def advertisement(lang: str, chooser: random.Random) -> str:
    """A short promotional page: slogans, a product over and over, and several contacts."""
    slogans, products, contacts = _ADS[lang]
    product = chooser.choice(products)
    phone = mobile_phone if lang == "zh" else american_phone

    def filled(line: str) -> str:
        numbers = {"n": chooser.randint(1, 9), "qq": chooser.randrange(10**8, 10**10), "phone": phone(chooser)}
        return line.format(**numbers)

    stop = "！" if lang == "zh" else "! "
    space = "" if lang == "zh" else " "
    lines = [stop.join(filled(slogan) for slogan in chooser.sample(slogans, 3)) + stop.rstrip() for _ in range(4)]
    lines = [f"{product}{space}{line}" for line in lines] + [filled(contact) for contact in chooser.sample(contacts, 3)]
    chooser.shuffle(lines)
    return "\n".join([filled(f"{product}{stop}{slogans[0]}{stop}"), *lines])


_TINY = {
    "zh": [
        "首页 > {a} > {b} > 正文",
        "404 页面不存在，返回{a}首页",
        "您的浏览器版本过低，请升级后访问{a}",
        "本网站使用Cookie，继续浏览即表示您同意。{b}",
        "上一篇：{a} 下一篇：{b}",
        "登录 注册 忘记密码 {a}",
        "版权所有 © {n} {a} ICP备{n}号",
        "加载中，请稍候…… {b}",
        "没有找到与“{a}”有关的结果",
    ],
    "en": [
        "Home > {a} > {b}",
        "404 Not Found: /{a}/{b}.html",
        "This site uses cookies. By continuing you agree. {a}",
        "Previous: {a} | Next: {b}",
        "Sign in | Register | {a}",
        "Copyright {n} {a}. All rights reserved.",
        "Loading {b}...",
        "Please enable JavaScript to view {a}.",
        "Your search for '{b}' returned no results.",
    ],
}
_TOPICS = {
    "zh": ["新闻", "体育", "汽车", "旅游", "教育", "房产", "科技", "美食", "健康", "论坛", "图片", "视频"],
    "en": ["news", "sports", "cars", "travel", "education", "property", "science", "food", "health", "forum", "photos"],
}


def tiny_page(lang: str, chooser: random.Random) -> str:
    """What is left of a page without content: navigation crumbs, an error, a banner about cookies."""
    first, second = chooser.sample(_TOPICS[lang], 2)
    template = chooser.choice(_TINY[lang])
    return template.format(a=f"{first}{chooser.randrange(1000)}", b=second, n=chooser.randint(2001, 2025))


def repeated_phrase(text: str, lang: str, chooser: random.Random) -> str:
    """A phrase of the text two hundred times in a row."""
    if lang == "zh":
        dense = re.sub(r"\s+", "", text)
        size = chooser.randint(4, 12)
        start = chooser.randrange(max(1, len(dense) - size))
        return (dense[start : start + size] + chooser.choice(["", "，", "！"])) * 200
    words = text.split()
    size = chooser.randint(2, 7)
    start = chooser.randrange(max(1, len(words) - size))
    return " ".join([" ".join(words[start : start + size])] * 200)


def duplicated_lines(text: str, lang: str, chooser: random.Random) -> str:
    """Some ten sentences of the text, each on a line and each fifteen to thirty times, shuffled."""
    sentences = re.split(r"[。！？\n]+" if lang == "zh" else r"(?<=[.!?])\s+|\n+", text)
    lines = [sentence.strip() for sentence in sentences if len(sentence.strip()) >= 8][:200]
    lines = chooser.sample(lines, min(10, len(lines))) or [text[:60]]
    repeated = [line for line in lines for _ in range(chooser.randint(15, 30))]
    chooser.shuffle(repeated)
    return "\n".join(repeated)


def with_words(text: str, words: Sequence[str], lang: str, chooser: random.Random) -> str:
    """The text with a word of a list after each clause."""
    clauses = re.split(r"(?<=[，。！？；\n])" if lang == "zh" else r"(?<=[,.;!?\n])", text[:4000])
    space = "" if lang == "zh" else " "
    return "".join(f"{clause}{space}{chooser.choice(words)}{space}" for clause in clauses if clause.strip())
