"""The sources `en_arithmetic` and `zh_arithmetic`: worked sums, in figures and in words, with correct answers.

A document is two to four items, each made by one small function below. Numbers stay small enough for a toy model to
learn something. Equations are written `12 + 7 = 19`, or `twelve plus seven equals nineteen`, or `十二加七等于十九`, and
nowhere else do these signs and words occur, so that a test can find and recompute every one of them.
"""

import random
from collections.abc import Callable, Iterator

from mindllm_engine.corpus.sample.phrases import capitalised, count_zh, number_en, number_zh
from mindllm_engine.corpus.sample.tables_daily import PEOPLE, THINGS


def _operands(rng: random.Random, operation: str) -> tuple[int, int, int]:
    """Two numbers and the result of `+`, `-`, `×` or `÷`; differences are not negative, quotients exact."""
    if operation == "+":
        a, b = rng.randint(1, 99), rng.randint(1, 99)
        return a, b, a + b
    if operation == "-":
        a = rng.randint(2, 99)
        b = rng.randint(1, a)
        return a, b, a - b
    a, b = rng.randint(2, 12), rng.randint(2, 12)
    return (a, b, a * b) if operation == "×" else (a * b, b, a)


def _in_words_en(rng: random.Random) -> str:
    names = {"+": "plus", "-": "minus", "×": "times", "÷": "divided by"}
    sentences = []
    for _ in range(rng.randint(2, 4)):
        operation = rng.choice("+-×÷")
        a, b, result = _operands(rng, operation)
        words = f"{number_en(a)} {names[operation]} {number_en(b)} equals {number_en(result)}."
        sentences.append(capitalised(words))
    return " ".join(sentences)


def _addition_in_steps_en(rng: random.Random) -> str:
    a, b = (10 * rng.randint(1, 8) + rng.randint(1, 9) for _ in range(2))
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    return (
        f"How much is {a} and {b}? First add the tens: {a // 10 * 10} + {b // 10 * 10} = {tens}. "
        f"Then add the ones: {a % 10} + {b % 10} = {ones}. Put them together: {tens} + {ones} = {a + b}. "
        f"So {a} + {b} = {a + b}."
    )


def _multiplication_in_steps_en(rng: random.Random) -> str:
    tens, ones, b = 10 * rng.randint(1, 8), rng.randint(1, 9), rng.randint(2, 9)
    a = tens + ones
    return (
        f"Let us multiply {a} by {b}. Split {a} into {tens} and {ones}. "
        f"{tens} × {b} = {tens * b}, and {ones} × {b} = {ones * b}. "
        f"{tens * b} + {ones * b} = {a * b}, so {a} × {b} = {a * b}."
    )


def _count_en(value: int, singular: str, plural: str) -> str:
    return f"{value} {singular if value == 1 else plural}"


def _problem_en(rng: random.Random) -> str:
    first, second = rng.sample(PEOPLE, 2)
    thing = rng.choice(THINGS)
    a, b = rng.randint(3, 40), rng.randint(2, 12)
    he, him = ("he", "him") if first.he else ("she", "her")
    many = f"How many {thing.plural_en}"

    def count(value: int) -> str:
        return _count_en(value, thing.en, thing.plural_en)

    kind = rng.randrange(5)
    if kind == 0:
        return (
            f"{first.en} has {count(a)}. {second.en} gives {him} {b} more. {many} does {first.en} have now? "
            f"{a} + {b} = {a + b}. {first.en} has {count(a + b)} now."
        )
    if kind == 1:
        return (
            f"{first.en} has {count(a + b)}. {capitalised(he)} gives {b} of them to {second.en}. "
            f"{many} does {first.en} have left? {a + b} - {b} = {a}. {first.en} has {count(a)} left."
        )
    if kind == 2:
        boxes = rng.randint(2, 9)
        return (
            f"There are {boxes} boxes. Each box holds {count(b)}. {many} are there in all? "
            f"{boxes} × {b} = {boxes * b}. There are {count(boxes * b)} in all."
        )
    if kind == 3:
        children = rng.randint(2, 9)
        return (
            f"{first.en} has {count(children * b)} and shares them equally among {children} children. "
            f"{many} does each child get? {children * b} ÷ {children} = {b}. Each child gets {count(b)}."
        )
    price = rng.randint(thing.low, thing.high)
    return (
        f"One {thing.en} costs {price} yuan. {first.en} buys {count(b)}. How much does {he} pay? "
        f"{price} × {b} = {price * b}. {first.en} pays {price * b} yuan."
    )


def _times_table_en(rng: random.Random) -> str:
    n, start = rng.randint(2, 12), rng.randint(1, 7)
    rows = ", ".join(f"{n} × {k} = {n * k}" for k in range(start, start + 5))
    return f"Here is a part of the {number_en(n)} times table: {rows}."


def _in_words_zh(rng: random.Random) -> str:
    names = {"+": "加", "-": "减", "×": "乘以", "÷": "除以"}
    clauses = []
    for _ in range(rng.randint(2, 5)):
        operation = rng.choice("+-×÷")
        a, b, result = _operands(rng, operation)
        clauses.append(f"{number_zh(a)}{names[operation]}{number_zh(b)}等于{number_zh(result)}")
    return "，".join(clauses) + "。"


def _addition_in_steps_zh(rng: random.Random) -> str:
    a, b = (10 * rng.randint(1, 8) + rng.randint(1, 9) for _ in range(2))
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    return (
        f"{a}和{b}合起来是多少？先算整十数：{a // 10 * 10} + {b // 10 * 10} = {tens}。"
        f"再算个位数：{a % 10} + {b % 10} = {ones}。最后合在一起：{tens} + {ones} = {a + b}。所以{a} + {b} = {a + b}。"
    )


def _multiplication_in_steps_zh(rng: random.Random) -> str:
    tens, ones, b = 10 * rng.randint(1, 8), rng.randint(1, 9), rng.randint(2, 9)
    a = tens + ones
    return (
        f"我们来计算{a}的{b}倍是多少。把{a}分成{tens}和{ones}。{tens} × {b} = {tens * b}，{ones} × {b} = {ones * b}。"
        f"{tens * b} + {ones * b} = {a * b}，所以{a} × {b} = {a * b}。"
    )


def _problem_zh(rng: random.Random) -> str:
    first, second = rng.sample(PEOPLE, 2)
    thing = rng.choice(THINGS)
    a, b = rng.randint(3, 40), rng.randint(2, 12)
    many = f"多少{thing.measure_zh}{thing.zh}"

    def count(value: int) -> str:
        return f"{value}{thing.measure_zh}{thing.zh}"

    kind = rng.randrange(5)
    if kind == 0:
        return (
            f"{first.zh}有{count(a)}，{second.zh}又给了{'他' if first.he else '她'}{b}{thing.measure_zh}。"
            f"{first.zh}现在一共有{many}？{a} + {b} = {a + b}。{first.zh}现在一共有{count(a + b)}。"
        )
    if kind == 1:
        return (
            f"{first.zh}有{count(a + b)}，送给{second.zh}{b}{thing.measure_zh}。{first.zh}还剩{many}？"
            f"{a + b} - {b} = {a}。{first.zh}还剩{count(a)}。"
        )
    if kind == 2:
        boxes = rng.randint(2, 9)
        return (
            f"这里有{count_zh(boxes)}个箱子，每个箱子里有{count(b)}。一共有{many}？"
            f"{boxes} × {b} = {boxes * b}。一共有{count(boxes * b)}。"
        )
    if kind == 3:
        children = rng.randint(2, 9)
        return (
            f"{first.zh}有{count(children * b)}，平均分给{count_zh(children)}个小朋友。每个小朋友分到{many}？"
            f"{children * b} ÷ {children} = {b}。每个小朋友分到{count(b)}。"
        )
    price = rng.randint(thing.low, thing.high)
    return (
        f"一{thing.measure_zh}{thing.zh}{price}元，{first.zh}买了{count(b)}。{first.zh}一共要付多少元？"
        f"{price} × {b} = {price * b}。{first.zh}一共要付{price * b}元。"
    )


def _times_table_zh(rng: random.Random) -> str:
    n, start = rng.randint(2, 12), rng.randint(1, 7)
    rows = "，".join(f"{n} × {k} = {n * k}" for k in range(start, start + 5))
    return f"下面是{number_zh(n)}的乘法表中的一部分：{rows}。"


Item = Callable[[random.Random], str]
_ITEMS_EN: list[Item] = [
    _in_words_en,
    _addition_in_steps_en,
    _multiplication_in_steps_en,
    _problem_en,
    _problem_en,
    _times_table_en,
]
_ITEMS_ZH: list[Item] = [
    _in_words_zh,
    _addition_in_steps_zh,
    _multiplication_in_steps_zh,
    _problem_zh,
    _problem_zh,
    _times_table_zh,
]


def en_arithmetic(rng: random.Random) -> Iterator[str]:
    """Documents without end: two to four worked items, one a line."""
    while True:
        yield "\n".join(item(rng) for item in rng.choices(_ITEMS_EN, k=rng.randint(2, 4)))


def zh_arithmetic(rng: random.Random) -> Iterator[str]:
    """As `en_arithmetic`, in Chinese."""
    while True:
        yield "\n".join(item(rng) for item in rng.choices(_ITEMS_ZH, k=rng.randint(2, 4)))
