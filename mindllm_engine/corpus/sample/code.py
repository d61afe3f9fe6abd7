"""The source `en_code`: small Python functions with English docstrings and examples that are true.

Each function below writes one kind of program from random numbers and names, and computes the results in its examples
itself, in Python, so that the doctests hold. Numbers in names keep two documents of a kind apart.
"""

import random
from collections.abc import Callable, Iterator

from mindllm_engine.corpus.sample.phrases import number_en

WORDS = ["apple", "river", "stone", "garden", "window", "yellow", "summer", "basket", "little", "banana", "kitten"]
WORDS += ["letter", "music", "paper", "silver", "village", "butter", "teacher", "orange", "pencil", "level", "noon"]
LIST_NAMES = ["values", "numbers", "items", "data", "amounts", "scores"]
TEXT_NAMES = ["text", "word", "line", "sentence", "name"]


def _numbers(rng: random.Random, low: int = 0, high: int = 50) -> list[int]:
    return [rng.randint(low, high) for _ in range(rng.randint(3, 6))]


def _function(header: str, purpose: str, examples: list[tuple[str, object]], body: str) -> str:
    """The source of one function: its header without `def` and colon, its docstring, its examples and its body."""
    lines = [f"def {header}:", f'    """{purpose}', ""]
    for call, result in examples:
        lines += [f"    >>> {call}", f"    {result!r}"]
    lines += ['    """', *(f"    {line}" for line in body.splitlines())]
    return "\n".join(lines) + "\n"


def _arithmetic(rng: random.Random) -> str:
    k, x, y = rng.randint(2, 20), rng.randint(0, 30), rng.randint(0, 30)
    word = number_en(k).replace("-", "_")
    kinds: list[tuple[str, str, str, Callable[[int], int]]] = [
        (f"add_{word}", f"Return the number plus {k}.", f"number + {k}", lambda v: v + k),
        (f"subtract_{word}", f"Return the number minus {k}.", f"number - {k}", lambda v: v - k),
        (f"times_{word}", f"Return the number multiplied by {k}.", f"number * {k}", lambda v: v * k),
        (f"remainder_{word}", f"Return the remainder of the number divided by {k}.", f"number % {k}", lambda v: v % k),
        (f"square_plus_{word}", f"Return the square of the number plus {k}.", f"number ** 2 + {k}", lambda v: v**2 + k),
    ]
    name, purpose, expression, compute = rng.choice(kinds)
    examples: list[tuple[str, object]] = [(f"{name}({v})", compute(v)) for v in (x, y)]
    return _function(f"{name}(number: int) -> int", purpose, examples, f"return {expression}")


def _predicate(rng: random.Random) -> str:
    k, x = rng.randint(2, 20), rng.randint(1, 60)
    word = number_en(k).replace("-", "_")
    kinds: list[tuple[str, str, str, Callable[[int], bool]]] = [
        (f"is_multiple_of_{word}", f"a multiple of {k}", f"number % {k} == 0", lambda v: v % k == 0),
        (f"is_greater_than_{word}", f"greater than {k}", f"number > {k}", lambda v: v > k),
        (f"is_less_than_{word}", f"less than {k}", f"number < {k}", lambda v: v < k),
    ]
    name, what, expression, compute = rng.choice(kinds)
    examples: list[tuple[str, object]] = [(f"{name}({v})", compute(v)) for v in (x, k * rng.randint(2, 9))]
    return _function(
        f"{name}(number: int) -> bool", f"Tell whether the number is {what}.", examples, f"return {expression}"
    )


def _reduce(rng: random.Random) -> str:
    name, values = rng.choice(LIST_NAMES), _numbers(rng)
    title, purpose, start, step, result = rng.choice(
        [
            ("total", "the sum", "0", "result += value", sum(values)),
            ("sum_of_squares", "the sum of the squares", "0", "result += value * value", sum(v * v for v in values)),
            ("largest", "the largest", f"{name}[0]", "if value > result:\n        result = value", max(values)),
            ("smallest", "the smallest", f"{name}[0]", "if value < result:\n        result = value", min(values)),
            (
                "count_even",
                "the number of even ones",
                "0",
                "if value % 2 == 0:\n        result += 1",
                _count(values, 0),
            ),
            ("count_odd", "the number of odd ones", "0", "if value % 2 == 1:\n        result += 1", _count(values, 1)),
        ]
    )
    body = f"result = {start}\nfor value in {name}:\n    {step}\nreturn result"
    header = f"{title}({name}: list[int]) -> int"
    return _function(header, f"Return {purpose} of the {name}.", [(f"{title}({values})", result)], body)


def _count(values: list[int], parity: int) -> int:
    return sum(value % 2 == parity for value in values)


def _select(rng: random.Random) -> str:
    name, values, k = rng.choice(LIST_NAMES), _numbers(rng), rng.randint(2, 30)
    word = number_en(k).replace("-", "_")
    title, what, condition, result = rng.choice(
        [
            (f"above_{word}", f"greater than {k}", f"value > {k}", [v for v in values if v > k]),
            (f"below_{word}", f"less than {k}", f"value < {k}", [v for v in values if v < k]),
            (f"without_{word}", f"different from {k}", f"value != {k}", [v for v in values if v != k]),
            ("even_ones", "even", "value % 2 == 0", [v for v in values if v % 2 == 0]),
            ("odd_ones", "odd", "value % 2 == 1", [v for v in values if v % 2 == 1]),
        ]
    )
    body = rng.choice(
        [
            f"return [value for value in {name} if {condition}]",
            f"result = []\nfor value in {name}:\n    if {condition}:\n        result.append(value)\nreturn result",
        ]
    )
    header = f"{title}({name}: list[int]) -> list[int]"
    return _function(header, f"Return the {name} that are {what}.", [(f"{title}({values})", result)], body)


def _transform(rng: random.Random) -> str:
    name, values, k = rng.choice(LIST_NAMES), _numbers(rng), rng.randint(2, 12)
    title, purpose, expression, result = rng.choice(
        [
            ("scaled", f"Return the {name}, each multiplied by {k}.", f"value * {k}", [v * k for v in values]),
            ("shifted", f"Return the {name}, each increased by {k}.", f"value + {k}", [v + k for v in values]),
            ("squared", f"Return the squares of the {name}.", "value * value", [v * v for v in values]),
            ("capped", f"Return the {name}, none above {k}.", f"min(value, {k})", [min(v, k) for v in values]),
        ]
    )
    header = f"{title}({name}: list[int]) -> list[int]"
    return _function(header, purpose, [(f"{title}({values})", result)], f"return [{expression} for value in {name}]")


def _order(rng: random.Random) -> str:
    name, values = rng.choice(LIST_NAMES), _numbers(rng)
    title, purpose, body, result = rng.choice(
        [
            ("ascending", f"Return the {name} from small to large.", f"return sorted({name})", sorted(values)),
            (
                "descending",
                f"Return the {name} from large to small.",
                f"return sorted({name}, reverse=True)",
                sorted(values, reverse=True),
            ),
            ("backwards", f"Return the {name} in reverse order.", f"return {name}[::-1]", values[::-1]),
            ("first_and_last", f"Return the first and the last of the {name}.", "", [values[0], values[-1]]),
            ("unique", f"Return the {name} without repetitions.", "", list(dict.fromkeys(values))),
        ]
    )
    if title == "first_and_last":
        body = f"return [{name}[0], {name}[-1]]"
    if title == "unique":
        body = f"seen = []\nfor value in {name}:\n    if value not in seen:\n        seen.append(value)\nreturn seen"
    return _function(f"{title}({name}: list[int]) -> list[int]", purpose, [(f"{title}({values})", result)], body)


def _text(rng: random.Random) -> str:
    name, words, letter = rng.choice(TEXT_NAMES), rng.sample(WORDS, 2), rng.choice("aeiounrtl")
    kinds: list[tuple[str, str, str, str, Callable[[str], object]]] = [
        ("reverse", "str", f"Return the {name} backwards.", f"return {name}[::-1]", lambda w: w[::-1]),
        ("shout", "str", f"Return the {name} in capital letters.", f"return {name}.upper()", str.upper),
        ("first_letter", "str", f"Return the first letter of the {name}.", f"return {name}[0]", lambda w: w[0]),
        ("length", "int", f"Return the number of letters in the {name}.", f"return len({name})", len),
        ("is_palindrome", "bool", "Tell whether it reads the same backwards.", f"return {name} == {name}[::-1]", _same),
        (
            f"count_{letter}",
            "int",
            f'Count how often the letter "{letter}" occurs in the {name}.',
            f'count = 0\nfor letter in {name}:\n    if letter == "{letter}":\n        count += 1\nreturn count',
            lambda w: w.count(letter),
        ),
        (
            "count_vowels",
            "int",
            f"Count the vowels in the {name}.",
            f'return sum(letter in "aeiou" for letter in {name})',
            lambda w: sum(c in "aeiou" for c in w),
        ),
    ]
    title, kind, purpose, body, compute = rng.choice(kinds)
    examples = [(f'{title}("{word}")', compute(word)) for word in words]
    return _function(f"{title}({name}: str) -> {kind}", purpose, examples, body)


def _same(word: str) -> bool:
    return word == word[::-1]


def _words(rng: random.Random) -> str:
    words = rng.sample(WORDS, 3)
    title, kind, purpose, body, result = rng.choice(
        [
            ("longest_word", "str", "Return the longest word, the first of several.", "", max(words, key=len)),
            ("lengths", "list[int]", "Return the length of each word.", "", [len(w) for w in words]),
            ("in_order", "list[str]", "Return the words in alphabetical order.", "return sorted(words)", sorted(words)),
            ("joined", "str", "Join the words with commas.", 'return ", ".join(words)', ", ".join(words)),
            ("initials", "str", "Return the first letters of the words.", "", "".join(w[0] for w in words)),
        ]
    )
    body = (
        body
        or {
            "longest_word": "return max(words, key=len)",
            "lengths": "return [len(word) for word in words]",
            "initials": 'return "".join(word[0] for word in words)',
        }[str(title)]
    )
    return _function(f"{title}(words: list[str]) -> {kind}", str(purpose), [(f"{title}({words})", result)], str(body))


def _mathematics(rng: random.Random) -> str:
    n, a, b = rng.randint(3, 9), rng.randint(2, 40), rng.randint(2, 40)
    factorial, fibonacci, power = 1, [0, 1], 2**n
    for k in range(2, n + 1):
        factorial *= k
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    x, y = a, b
    while y:
        x, y = y, x % y
    kinds: list[tuple[str, str, str, str, int]] = [
        ("factorial(n: int)", "Return the product of 1 to n.", f"factorial({n})", _FACTORIAL, factorial),
        ("fibonacci(n: int)", "Return the n-th Fibonacci number.", f"fibonacci({n})", _FIBONACCI, fibonacci[n]),
        ("gcd(a: int, b: int)", "Return the greatest common divisor of a and b.", f"gcd({a}, {b})", _GCD, x),
        ("power_of_two(n: int)", "Return 2 to the power of n.", f"power_of_two({n})", "return 2**n", power),
        ("digit_sum(n: int)", "Return the sum of the digits of n.", f"digit_sum({a * b})", _DIGITS, _digit_sum(a * b)),
        ("difference(a: int, b: int)", "Return how far apart a and b are.", f"difference({a}, {b})", _GAP, abs(a - b)),
        ("area(a: int, b: int)", "Return the area of a rectangle.", f"area({a}, {b})", "return a * b", a * b),
        (
            "minutes(a: int, b: int)",
            "Return a hours and b minutes in minutes.",
            f"minutes({a}, {b})",
            _TIME,
            a * 60 + b,
        ),
    ]
    header, purpose, call, body, result = rng.choice(kinds)
    return _function(f"{header} -> int", purpose, [(call, result)], body)


def _digit_sum(value: int) -> int:
    return sum(int(digit) for digit in str(value))


_FACTORIAL = "result = 1\nfor k in range(2, n + 1):\n    result *= k\nreturn result"
_FIBONACCI = "a, b = 0, 1\nfor _ in range(n):\n    a, b = b, a + b\nreturn a"
_GCD = "while b:\n    a, b = b, a % b\nreturn a"
_DIGITS = "return sum(int(digit) for digit in str(n))"
_GAP = "if a > b:\n    return a - b\nreturn b - a"
_TIME = "return a * 60 + b"

_KINDS = [_arithmetic, _predicate, _reduce, _select, _transform, _order, _text, _words, _mathematics]


def en_code(rng: random.Random) -> Iterator[str]:
    """Documents without end: a module of one to three functions of different kinds."""
    while True:
        functions = [kind(rng) for kind in rng.sample(_KINDS, rng.randint(1, 3))]
        yield "\n\n".join(functions).rstrip("\n")
