"""The source `zh_dialogue`: short conversations in shops, streets, restaurants and schools, in Chinese.

The wording of every scene is in tables_dialogue.py; here the slots of one scene are drawn together, so that a bill adds
up, the change is right and a speaker keeps a name.
"""

import random
from collections.abc import Iterator

from mindllm_engine.corpus.sample import tables_dialogue as tables
from mindllm_engine.corpus.sample.phrases import count_zh, number_zh, tell
from mindllm_engine.corpus.sample.tables_daily import THINGS

Slots = dict[str, str]


def _common(rng: random.Random) -> Slots:
    """What several scenes use, each drawn on its own."""
    slots = {name: rng.choice(values) for name, values in tables.SLOTS.items()}
    slots["a"], slots["b"] = rng.sample(tables.NAMES, 2)
    slots["goal"], slots["near"] = rng.sample(tables.PLACES, 2)
    slots["city"], slots["city2"] = rng.sample(tables.CITIES, 2)
    slots["hobby"], slots["hobby2"] = rng.sample(tables.SLOTS["hobby"], 2)
    slots["surname"], slots["road"] = rng.choice(tables.SURNAMES), rng.choice(tables.ROADS)
    slots["n"], slots["n2"] = count_zh(rng.randint(2, 6)), count_zh(rng.randint(2, 5))
    slots["nth"], slots["floor"] = number_zh(rng.randint(1, 6)), number_zh(rng.randint(2, 5))
    slots["minutes"] = number_zh(rng.choice([5, 8, 10, 15, 20]))
    slots["days"], slots["times"] = number_zh(rng.choice([15, 20, 30])), count_zh(rng.randint(2, 3))
    morning = slots["hour"] in ("八点", "九点", "十点", "十一点")
    slots["clock"] = ("上午" if morning else "晚上" if slots["hour"] == "七点半" else "下午") + slots["hour"]
    return slots


def _market(rng: random.Random, slots: Slots) -> list[list[str]]:
    (fruit, low, high), (fruit2, low2, high2) = rng.sample(tables.PRODUCE, 2)
    price, price2, n, n2 = rng.randint(low, high), rng.randint(low2, high2), rng.randint(2, 5), rng.randint(2, 4)
    total = price * n + price2 * n2
    paid = next(note for note in (20, 50, 100, 200) if note > total)
    slots |= {"fruit": fruit, "fruit2": fruit2, "price": count_zh(price), "price2": count_zh(price2)}
    slots |= {"n": count_zh(n), "n2": count_zh(n2), "total": number_zh(total)}
    slots |= {"paid": number_zh(paid), "change": count_zh(paid - total)}
    return tables.MARKET


def _clothes(rng: random.Random, slots: Slots) -> list[list[str]]:
    thing = rng.choice([thing for thing in THINGS if thing.shop_zh == "服装店"])
    old, off = rng.randint(thing.low, thing.high), 5 * rng.randint(1, 4)
    slots |= {"thing": thing.zh, "m": thing.measure_zh}
    slots |= {"old": number_zh(old), "off": number_zh(off), "now": number_zh(old - off)}
    return tables.CLOTHES


def _forecast(rng: random.Random, slots: Slots) -> list[list[str]]:
    slots["weather"], slots["advice"] = rng.choice(tables.WEATHER)
    low, gap = rng.randint(3, 22), rng.randint(5, 12)
    slots |= {"low": number_zh(low), "high": number_zh(low + gap), "gap": number_zh(gap)}
    return tables.FORECAST


def _doctor(rng: random.Random, slots: Slots) -> list[list[str]]:
    slots["ill"], slots["verdict"], slots["advice"] = rng.choice(tables.ILLNESSES)
    return tables.DOCTOR


def _restaurant(rng: random.Random, slots: Slots) -> list[list[str]]:
    (dish, p1), (dish2, p2) = rng.sample(tables.DISHES, 2)
    soup, p3 = rng.choice(tables.SOUPS)
    slots |= {"dish": dish, "dish2": dish2, "soup": soup, "total": number_zh(p1 + p2 + p3)}
    slots |= {"p1": number_zh(p1), "p2": number_zh(p2), "p3": number_zh(p3)}
    return tables.RESTAURANT


def _train(rng: random.Random, slots: Slots) -> list[list[str]]:
    price, n = 10 * rng.randint(5, 40), rng.randint(2, 4)
    hours = {"上午": ["八点", "九点", "十点"], "下午": ["一点", "两点", "三点"]}
    slots |= {"n": count_zh(n), "price": number_zh(price), "total": number_zh(price * n)}
    slots["hour1"] = rng.choice(hours[slots["part"]])
    return tables.TRAIN


def zh_dialogue(rng: random.Random) -> Iterator[str]:
    """Documents without end: one scene each, one turn a line."""
    computed = [_market, _clothes, _forecast, _doctor, _restaurant, _train]
    plain = [tables.DIRECTIONS, tables.APPOINTMENT, tables.FRIENDS, tables.LIBRARY, tables.HOMEWORK]
    while True:
        slots = _common(rng)
        choice = rng.randrange(len(computed) + len(plain))
        scene = computed[choice](rng, slots) if choice < len(computed) else plain[choice - len(computed)]
        yield "\n".join(tell(rng, scene, slots))
