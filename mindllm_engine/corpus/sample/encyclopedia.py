"""The sources `en_encyclopedia` and `zh_encyclopedia`: short descriptions made from the tables of facts.

An entry is a definition followed by some of the subject's other facts, in one of several wordings and orders, and
sometimes by a related subject. The wordings for a fact are kept together, so that the two languages can be read side
by side.
"""

import random
from collections.abc import Callable, Iterator

from mindllm_engine.corpus.sample.phrases import capitalised, listed_en, listed_zh, number_en, number_zh, with_article
from mindllm_engine.corpus.sample.tables_calendar import FESTIVALS, SEASONS
from mindllm_engine.corpus.sample.tables_daily import JOBS
from mindllm_engine.corpus.sample.tables_geography import COUNTRIES, RIVERS, Country
from mindllm_engine.corpus.sample.tables_nature import ANIMALS, ELEMENTS, PLANETS, PLANTS

Entry = Callable[[random.Random], list[str]]


def _some(rng: random.Random, facts: list[list[str]], least: int) -> list[str]:
    """One wording each of at least `least` of the facts, in random order."""
    return [rng.choice(wordings) for wordings in rng.sample(facts, rng.randint(least, len(facts)))]


def _country_en(rng: random.Random) -> list[str]:
    c = rng.choice(COUNTRIES)
    name = capitalised(c.en)
    first = rng.choice([f"{name} is a country in {c.continent_en}.", f"{name} lies in {c.continent_en}."])
    facts = [
        [f"The capital of {c.en} is {c.capital_en}.", f"{c.capital_en} is the capital of {c.en}."],
        [f"{c.language_en} is widely spoken there.", f"Many people in {c.en} speak {c.language_en}."],
        [f"The currency of {c.en} is {c.currency_en}.", f"People there pay with {c.currency_en}."],
        [f"{name} is known for {c.known_for_en}.", f"Visitors to {c.en} think of {c.known_for_en}."],
    ]
    return [first, *_some(rng, facts, 3), _neighbour_en(rng, c)]


def _neighbour_en(rng: random.Random, country: Country) -> str:
    others = [c for c in COUNTRIES if c.continent_en == country.continent_en and c is not country]
    one, two = rng.sample(others, 2)
    return rng.choice(
        [
            f"Another country in {one.continent_en} is {one.en}, whose capital is {one.capital_en}.",
            f"Other countries in {one.continent_en} are {one.en} and {two.en}.",
            f"The capital of {one.en}, which is also in {one.continent_en}, is {one.capital_en}.",
        ]
    )


def _country_zh(rng: random.Random) -> list[str]:
    c = rng.choice(COUNTRIES)
    first = rng.choice([f"{c.zh}是{c.continent_zh}的一个国家。", f"{c.zh}位于{c.continent_zh}。"])
    facts = [
        [f"{c.zh}的首都是{c.capital_zh}。", f"{c.capital_zh}是{c.zh}的首都。"],
        [f"当地通行{c.language_zh}。", f"{c.zh}有很多人说{c.language_zh}。"],
        [f"{c.zh}使用的货币是{c.currency_zh}。", f"人们在那里用{c.currency_zh}付款。"],
        [f"说到{c.zh}，人们会想起{c.known_for_zh}。", f"{c.known_for_zh}让{c.zh}闻名世界。"],
    ]
    others = [other for other in COUNTRIES if other.continent_zh == c.continent_zh and other is not c]
    one, two = rng.sample(others, 2)
    last = rng.choice(
        [
            f"{c.continent_zh}的另一个国家是{one.zh}，它的首都是{one.capital_zh}。",
            f"{one.zh}和{two.zh}也是{c.continent_zh}的国家。",
            f"同样位于{c.continent_zh}的{one.zh}，首都是{one.capital_zh}。",
        ]
    )
    return [first, *_some(rng, facts, 3), last]


def _animal_en(rng: random.Random) -> list[str]:
    a = rng.choice(ANIMALS)
    kinds = "fish" if a.kind_en == "fish" else a.kind_en + "s"
    legs = number_en(a.legs) if a.legs else "no"
    facts = [
        [f"{capitalised(a.plural_en)} eat {a.food_en}.", f"They feed on {a.food_en}."],
        [f"{capitalised(a.plural_en)} live {a.home_en}.", f"They live {a.home_en}."],
        [f"{capitalised(a.plural_en)} {a.trait_en}.", f"They {a.trait_en}."],
        [f"{capitalised(with_article(a.en))} has {legs} legs.", f"They have {legs} legs."],
    ]
    same = [other.plural_en for other in ANIMALS if other.kind_en == a.kind_en and other is not a]
    last = f"{capitalised(listed_en(rng.sample(same, min(2, len(same)))))} are also {kinds}."
    return [f"{capitalised(a.plural_en)} are {kinds}.", *_some(rng, facts, 3), last]


def _animal_zh(rng: random.Random) -> list[str]:
    a = rng.choice(ANIMALS)
    kind = f"一种{a.kind_zh}" if a.kind_zh in ("哺乳动物", "爬行动物", "两栖动物", "昆虫") else a.kind_zh
    legs = (
        f"一{a.measure_zh}{a.zh}有{'两' if a.legs == 2 else number_zh(a.legs)}条腿。" if a.legs else f"{a.zh}没有腿。"
    )
    facts = [
        [f"{a.zh}吃{a.food_zh}。", f"它们的食物是{a.food_zh}。"],
        [f"{a.zh}生活在{a.home_zh}。", f"它们生活在{a.home_zh}。"],
        [f"{a.zh}{a.trait_zh}。", f"它们{a.trait_zh}。"],
        [legs],
    ]
    same = [other.zh for other in ANIMALS if other.kind_zh == a.kind_zh and other is not a]
    last = f"{listed_zh(rng.sample(same, min(2, len(same))))}也是{a.kind_zh}。"
    return [f"{a.zh}是{kind}。", *_some(rng, facts, 3), last]


def _element_en(rng: random.Random) -> list[str]:
    e, other = rng.sample(ELEMENTS, 2)
    facts = [
        [f"The symbol of {e.en} is {e.symbol}.", f"Chemists write {e.en} as {e.symbol}."],
        [f"Its atomic number is {e.number}.", f"An atom of {e.en} has {e.number} proton{'s' * (e.number > 1)}."],
        [f"At room temperature {e.en} is a {e.state_en}.", f"It is a {e.state_en} at room temperature."],
        [f"It is used {e.use_en}.", f"{capitalised(e.en)} is used {e.use_en}."],
    ]
    last = f"Another element is {other.en}, whose symbol is {other.symbol} and whose atomic number is {other.number}."
    return [f"{capitalised(e.en)} is a chemical element.", *_some(rng, facts, 3), last]


def _element_zh(rng: random.Random) -> list[str]:
    e, other = rng.sample(ELEMENTS, 2)
    facts = [
        [f"{e.zh}的元素符号是{e.symbol}。", f"化学家把{e.zh}写作{e.symbol}。"],
        [f"它的原子序数是{e.number}。", f"{e.zh}原子有{e.number}个质子。"],
        [f"在室温下，{e.zh}是{e.state_zh}。", f"它在室温下是{e.state_zh}。"],
        [f"它常用来{e.use_zh}。", f"人们常用{e.zh}来{e.use_zh}。"],
    ]
    last = f"{other.zh}也是一种化学元素，元素符号是{other.symbol}，原子序数是{other.number}。"
    return [f"{e.zh}是一种化学元素。", *_some(rng, facts, 3), last]


def _planet_en(rng: random.Random) -> list[str]:
    p = rng.choice(PLANETS)
    facts = [
        [f"It is planet number {p.order} from the Sun.", f"Counting from the Sun, it is number {p.order}."],
        [f"{p.en} is a {p.kind_en} planet.", f"It is one of the four {p.kind_en} planets."],
        [p.trait_en],
    ]
    inner = f"{PLANETS[p.order - 2].en} is closer to the Sun than {p.en}." if p.order > 1 else ""
    outer = f"{PLANETS[p.order].en} is farther from the Sun than {p.en}." if p.order < 8 else ""
    others = listed_en([other.en for other in rng.sample([q for q in PLANETS if q is not p], rng.randint(2, 4))])
    last = f"{others} also go around the Sun."
    return [f"{p.en} is a planet of the solar system.", *_some(rng, facts, 2), *filter(None, [inner, outer]), last]


def _planet_zh(rng: random.Random) -> list[str]:
    p = rng.choice(PLANETS)
    facts = [
        [
            f"按照离太阳由近到远的顺序，它排在第{number_zh(p.order)}位。",
            f"它是从太阳往外数的第{number_zh(p.order)}颗行星。",
        ],
        [f"{p.zh}是一颗{p.kind_zh}行星。", f"它是四颗{p.kind_zh}行星之一。"],
        [p.trait_zh],
    ]
    inner = f"{PLANETS[p.order - 2].zh}比{p.zh}离太阳更近。" if p.order > 1 else ""
    outer = f"{PLANETS[p.order].zh}比{p.zh}离太阳更远。" if p.order < 8 else ""
    others = listed_zh([other.zh for other in rng.sample([q for q in PLANETS if q is not p], rng.randint(2, 4))])
    last = f"{others}也绕着太阳转。"
    return [f"{p.zh}是太阳系的一颗行星。", *_some(rng, facts, 2), *filter(None, [inner, outer]), last]


def _plant_en(rng: random.Random) -> list[str]:
    p, other = rng.sample(PLANTS, 2)
    body = [p.look_en, p.use_en]
    rng.shuffle(body)
    last = f"{capitalised(other.en)} is a plant too. {other.look_en} {other.use_en}"
    return [f"{capitalised(p.en)} is a plant.", *body, last, "Plants need water, light and air."]


def _plant_zh(rng: random.Random) -> list[str]:
    p, other = rng.sample(PLANTS, 2)
    body = [p.look_zh, p.use_zh]
    rng.shuffle(body)
    return [
        f"{p.zh}是一种植物。",
        *body,
        f"{other.zh}也是植物。{other.look_zh}{other.use_zh}",
        "植物需要水、阳光和空气。",
    ]


def _river_en(rng: random.Random) -> list[str]:
    r, other = rng.sample(RIVERS, 2)
    return [
        f"{capitalised(r.en)} is a river in {r.continent_en}.",
        rng.choice([f"It flows into {r.mouth_en}.", f"Its water reaches {r.mouth_en}."]),
        f"{capitalised(other.en)}, a river in {other.continent_en}, flows into {other.mouth_en}.",
        rng.choice(["Rivers carry fresh water to the sea.", "Many cities are built beside rivers."]),
    ]


def _river_zh(rng: random.Random) -> list[str]:
    r, other = rng.sample(RIVERS, 2)
    return [
        f"{r.zh}是{r.continent_zh}的一条河流。",
        rng.choice([f"它流入{r.mouth_zh}。", f"{r.zh}的水最后流入{r.mouth_zh}。"]),
        f"{other.zh}是{other.continent_zh}的一条河流，它流入{other.mouth_zh}。",
        rng.choice(["河流把淡水送进大海。", "许多城市都建在河边。"]),
    ]


def _season_en(rng: random.Random) -> list[str]:
    s, f, j = rng.choice(SEASONS), rng.choice(FESTIVALS), rng.choice(JOBS)
    return [
        f"In the northern half of the Earth, {s.en} lasts through {s.months_en}.",
        f"In {s.en} the weather is {s.weather_en}; {s.scene_en}.",
        f"{capitalised(f.en)} falls {f.date_en}. On that day people {f.custom_en}.",
        rng.choice(
            [
                f"{capitalised(with_article(j.en))} works {j.place_en} in every season and {j.does_en}.",
                f"In every season {with_article(j.en)} {j.does_en}.",
            ]
        ),
    ]


def _season_zh(rng: random.Random) -> list[str]:
    s, f, j = rng.choice(SEASONS), rng.choice(FESTIVALS), rng.choice(JOBS)
    return [
        f"在北半球，{s.months_zh}是{s.zh}。",
        f"{s.zh}天气{s.weather_zh}，{s.scene_zh}。",
        f"{f.zh}在{f.date_zh}，人们会{f.custom_zh}。",
        rng.choice([f"一年四季，{j.zh}都在{j.place_zh}{j.does_zh}。", f"不论哪个季节，{j.zh}都要{j.does_zh}。"]),
    ]


def _weighted(country: Entry, animal: Entry, element: Entry, *others: Entry) -> list[Entry]:
    """The kinds of entry, repeated in proportion to how many subjects each has."""
    return [country] * 5 + [animal] * 4 + [element] * 2 + list(others)


_ENTRIES_EN = _weighted(_country_en, _animal_en, _element_en, _planet_en, _plant_en, _river_en, _season_en)
_ENTRIES_ZH = _weighted(_country_zh, _animal_zh, _element_zh, _planet_zh, _plant_zh, _river_zh, _season_zh)


def en_encyclopedia(rng: random.Random) -> Iterator[str]:
    """Documents without end: one entry a paragraph, one or two of them."""
    while True:
        yield "\n".join(" ".join(entry(rng)) for entry in rng.choices(_ENTRIES_EN, k=rng.randint(1, 3)))


def zh_encyclopedia(rng: random.Random) -> Iterator[str]:
    """As `en_encyclopedia`, in Chinese."""
    while True:
        yield "\n".join("".join(entry(rng)) for entry in rng.choices(_ENTRIES_ZH, k=rng.randint(2, 4)))
