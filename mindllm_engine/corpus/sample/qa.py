"""The sources `en_qa` and `zh_qa`: questions with short answers, from the tables of facts.

All pairs are listed once, in a fixed order; a document is a few of them drawn at random. Every answer is a whole
sentence that repeats the question's words, which is what a small model can learn.
"""

import random
from collections.abc import Iterator
from itertools import pairwise

from mindllm_engine.corpus.sample.phrases import capitalised, count_zh, number_en, number_zh, with_article
from mindllm_engine.corpus.sample.tables_calendar import (
    COLOUR_MIXES,
    FESTIVALS,
    MONTH_DAYS,
    MONTHS_EN,
    OPPOSITES,
    SEASONS,
    UNITS,
    WEEKDAYS_EN,
    WEEKDAYS_ZH,
)
from mindllm_engine.corpus.sample.tables_daily import JOBS, TOOLS
from mindllm_engine.corpus.sample.tables_geography import COUNTRIES, RIVERS
from mindllm_engine.corpus.sample.tables_nature import ANIMALS, ELEMENTS, PLANETS

Pair = tuple[str, str]


def _world_en() -> list[Pair]:
    pairs = []
    for c in COUNTRIES:
        name = capitalised(c.en)
        pairs += [
            (f"What is the capital of {c.en}?", f"The capital of {c.en} is {c.capital_en}."),
            (f"Which country has {c.capital_en} as its capital?", f"{c.capital_en} is the capital of {c.en}."),
            (f"Where is {c.en}?", f"{name} is in {c.continent_en}."),
            (f"What money do people use in {c.en}?", f"In {c.en} people use {c.currency_en}."),
            (f"What is {c.en} known for?", f"{name} is known for {c.known_for_en}."),
        ]
    for r in RIVERS:
        name = capitalised(r.en)
        pairs += [
            (f"Where does {r.en} flow?", f"{name} flows into {r.mouth_en}."),
            (f"On which continent is {r.en}?", f"{name} is in {r.continent_en}."),
        ]
    return pairs


def _nature_en() -> list[Pair]:
    pairs = []
    for a in ANIMALS:
        kind = "a fish" if a.kind_en == "fish" else with_article(a.kind_en)
        one, legs = with_article(a.en), number_en(a.legs) if a.legs else "no"
        pairs += [
            (f"What kind of animal is {one}?", f"{capitalised(one)} is {kind}."),
            (f"How many legs does {one} have?", f"{capitalised(one)} has {legs} legs."),
            (f"What do {a.plural_en} eat?", f"{capitalised(a.plural_en)} eat {a.food_en}."),
            (f"Where do {a.plural_en} live?", f"{capitalised(a.plural_en)} live {a.home_en}."),
        ]
    for e in ELEMENTS:
        pairs += [
            (f"What is the chemical symbol of {e.en}?", f"The chemical symbol of {e.en} is {e.symbol}."),
            (f"What is the atomic number of {e.en}?", f"The atomic number of {e.en} is {e.number}."),
            (
                f"Is {e.en} a solid, a liquid or a gas at room temperature?",
                f"At room temperature {e.en} is a {e.state_en}.",
            ),
        ]
    for inner, outer in pairwise(PLANETS):
        pairs += [
            (f"Which planet comes after {inner.en}?", f"The planet after {inner.en} is {outer.en}."),
            (f"Which is closer to the Sun, {outer.en} or {inner.en}?", f"{inner.en} is closer to the Sun."),
        ]
    return pairs


def _daily_en() -> list[Pair]:
    pairs = []
    for u in UNITS:
        answer = f"There are {u.factor} {u.small_en} in one {u.one_en}."
        pairs.append((f"How many {u.small_en} are there in one {u.one_en}?", answer))
    for job in JOBS:
        one = with_article(job.en)
        pairs += [
            (f"Where does {one} work?", f"{capitalised(one)} works {job.place_en}."),
            (f"What does {one} do?", f"{capitalised(one)} {job.does_en}."),
        ]
    for tool in TOOLS:
        pairs.append((f"What do we use {tool.en} for?", f"We use {tool.en} to {tool.use_en}."))
    for left, right, _, _ in OPPOSITES:
        pairs.append((f'What is the opposite of "{left}"?', f'The opposite of "{left}" is "{right}".'))
    for f in FESTIVALS:
        pairs += [
            (f"When is {f.en}?", f"{capitalised(f.en)} is {f.date_en}."),
            (f"What do people do for {f.en}?", f"For {f.en} people {f.custom_en}."),
        ]
    for s in SEASONS:
        pairs += [
            (f"What is the weather like in {s.en}?", f"In {s.en} the weather is {s.weather_en}."),
            (f"What happens in {s.en}?", f"In {s.en} {s.scene_en}."),
        ]
    for month, days in zip(MONTHS_EN, MONTH_DAYS, strict=True):
        leap = " in a common year and twenty-nine in a leap year" if month == "February" else ""
        pairs.append((f"How many days are there in {month}?", f"{month} has {number_en(days)} days{leap}."))
    for k, month in enumerate(MONTHS_EN):
        after = MONTHS_EN[(k + 1) % 12]
        pairs.append((f"Which month comes after {month}?", f"The month after {month} is {after}."))
    for k, day in enumerate(WEEKDAYS_EN):
        after = WEEKDAYS_EN[(k + 1) % 7]
        pairs.append((f"If today is {day}, what day is tomorrow?", f"If today is {day}, tomorrow is {after}."))
    for one, two, mix, *_ in COLOUR_MIXES:
        pairs.append((f"What do {one} and {two} paint make?", f"{capitalised(one)} and {two} paint make {mix}."))
    return pairs


def _world_zh() -> list[Pair]:
    pairs = []
    for c in COUNTRIES:
        pairs += [
            (f"{c.zh}的首都是哪里？", f"{c.zh}的首都是{c.capital_zh}。"),
            (f"{c.capital_zh}是哪个国家的首都？", f"{c.capital_zh}是{c.zh}的首都。"),
            (f"{c.zh}在哪个洲？", f"{c.zh}在{c.continent_zh}。"),
            (f"{c.zh}使用什么货币？", f"{c.zh}使用{c.currency_zh}。"),
            (f"说到{c.zh}，人们会想起什么？", f"说到{c.zh}，人们会想起{c.known_for_zh}。"),
        ]
    for r in RIVERS:
        pairs += [
            (f"{r.zh}流向哪里？", f"{r.zh}流入{r.mouth_zh}。"),
            (f"{r.zh}在哪个洲？", f"{r.zh}在{r.continent_zh}。"),
        ]
    return pairs


def _nature_zh() -> list[Pair]:
    pairs = []
    for a in ANIMALS:
        legs = f"一{a.measure_zh}{a.zh}有{count_zh(a.legs)}条腿。" if a.legs else f"{a.zh}没有腿。"
        pairs += [
            (f"{a.zh}属于哪一类动物？", f"{a.zh}属于{a.kind_zh}。"),
            (f"一{a.measure_zh}{a.zh}有几条腿？", legs),
            (f"{a.zh}吃什么？", f"{a.zh}吃{a.food_zh}。"),
            (f"{a.zh}生活在哪里？", f"{a.zh}生活在{a.home_zh}。"),
        ]
    for e in ELEMENTS:
        pairs += [
            (f"{e.zh}的元素符号是什么？", f"{e.zh}的元素符号是{e.symbol}。"),
            (f"{e.zh}的原子序数是多少？", f"{e.zh}的原子序数是{e.number}。"),
            (f"{e.zh}在室温下是固体、液体还是气体？", f"{e.zh}在室温下是{e.state_zh}。"),
        ]
    for inner, outer in pairwise(PLANETS):
        pairs += [
            (f"从太阳往外数，{inner.zh}的下一颗行星是什么？", f"{inner.zh}的下一颗行星是{outer.zh}。"),
            (f"{outer.zh}和{inner.zh}，哪一颗离太阳更近？", f"{inner.zh}离太阳更近。"),
        ]
    return pairs


def _daily_zh() -> list[Pair]:
    pairs = []
    for u in UNITS:
        pairs.append((f"一{u.one_zh}等于多少{u.small_zh}？", f"一{u.one_zh}等于{u.factor}{u.small_zh}。"))
    for job in JOBS:
        pairs += [
            (f"{job.zh}在哪里工作？", f"{job.zh}在{job.place_zh}工作。"),
            (f"{job.zh}是做什么的？", f"{job.zh}的工作是{job.does_zh}。"),
        ]
    for tool in TOOLS:
        pairs.append((f"{tool.zh}是用来做什么的？", f"{tool.zh}是用来{tool.use_zh}的。"))
    for _, _, left, right in OPPOSITES:
        pairs.append((f"“{left}”的反义词是什么？", f"“{left}”的反义词是“{right}”。"))
    for f in FESTIVALS:
        pairs += [
            (f"{f.zh}在什么时候？", f"{f.zh}在{f.date_zh}。"),
            (f"{f.zh}人们会做什么？", f"{f.zh}人们会{f.custom_zh}。"),
        ]
    for s in SEASONS:
        pairs += [
            (f"{s.zh}的天气怎么样？", f"{s.zh}天气{s.weather_zh}。"),
            (f"{s.zh}有什么景象？", f"{s.zh}，{s.scene_zh}。"),
        ]
    for k, days in enumerate(MONTH_DAYS):
        month = f"{number_zh(k + 1)}月"
        leap = "，闰年有二十九天" if k == 1 else ""
        common = "平年" if k == 1 else ""
        pairs.append((f"{month}有多少天？", f"{month}{common}有{number_zh(days)}天{leap}。"))
    for k, day in enumerate(WEEKDAYS_ZH):
        after = WEEKDAYS_ZH[(k + 1) % 7]
        pairs.append((f"如果今天是{day}，明天是星期几？", f"如果今天是{day}，明天就是{after}。"))
    for *_, one, two, mix in COLOUR_MIXES:
        pairs.append((f"{one}和{two}的颜料混在一起是什么颜色？", f"{one}和{two}的颜料混在一起是{mix}。"))
    return pairs


def en_qa(rng: random.Random) -> Iterator[str]:
    """Documents without end: three to six questions, each on one line with its answer on the next."""
    pairs = _world_en() + _nature_en() + _daily_en()
    while True:
        chosen = rng.sample(pairs, rng.randint(3, 6))
        yield "\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in chosen)


def zh_qa(rng: random.Random) -> Iterator[str]:
    """As `en_qa`, in Chinese."""
    pairs = _world_zh() + _nature_zh() + _daily_zh()
    while True:
        chosen = rng.sample(pairs, rng.randint(4, 7))
        yield "\n".join(f"问：{question}\n答：{answer}" for question, answer in chosen)
