"""The source `parallel_zh_en`: English sentences with their Chinese translation, in both directions.

Frames come from tables_parallel.py. A document draws its slots once, so that its sentences speak of the same people,
things and places.
"""

import random
from collections.abc import Iterator

from mindllm_engine.corpus.sample import tables_parallel as tables
from mindllm_engine.corpus.sample.phrases import capitalised, count_zh, number_en, with_article
from mindllm_engine.corpus.sample.tables_calendar import SEASONS, WEEKDAYS_EN, WEEKDAYS_ZH
from mindllm_engine.corpus.sample.tables_daily import JOBS, PEOPLE, THINGS, TOOLS
from mindllm_engine.corpus.sample.tables_geography import COUNTRIES
from mindllm_engine.corpus.sample.tables_nature import ANIMALS


def _people_and_things(rng: random.Random) -> dict[str, str]:
    p, q = rng.sample(PEOPLE, 2)
    thing, job, count = rng.choice(THINGS), rng.choice(JOBS), rng.randint(2, 20)
    slots = {"p_en": p.en, "p_zh": p.zh, "q_en": q.en, "q_zh": q.zh}
    slots |= {"his_en": "his" if p.he else "her", "he_zh": "他" if p.he else "她"}
    slots |= {"thing_en": thing.en, "things_en": thing.plural_en, "thing_zh": thing.zh, "m_zh": thing.measure_zh}
    slots |= {"a_thing_en": with_article(thing.en), "shop_en": thing.shop_en, "shop_zh": thing.shop_zh}
    slots |= {"n_en": number_en(count), "n_zh": count_zh(count), "price": str(rng.randint(thing.low, thing.high))}
    slots |= {"a_job_en": with_article(job.en), "job_zh": job.zh, "age": str(rng.randint(6, 18))}
    slots["minutes"] = str(rng.randint(1, 12) * 5)
    return slots


def _world(rng: random.Random) -> dict[str, str]:
    country, animal, season = rng.choice(COUNTRIES), rng.choice(ANIMALS), rng.choice(SEASONS)
    tool, day = rng.choice(TOOLS), rng.randrange(7)
    slots = {"c_en": country.en, "c_cap_en": capitalised(country.en), "c_zh": country.zh}
    slots |= {"cap_en": country.capital_en, "cap_zh": country.capital_zh}
    slots |= {"cont_en": country.continent_en, "cont_zh": country.continent_zh}
    slots |= {"animals_en": capitalised(animal.plural_en), "an_animal_en": with_article(animal.en)}
    slots |= {"animal_zh": animal.zh, "am_zh": animal.measure_zh}
    slots |= {
        "food_en": animal.food_en,
        "food_zh": animal.food_zh,
        "home_en": animal.home_en,
        "home_zh": animal.home_zh,
    }
    slots |= {"season_en": season.en, "season_zh": season.zh, "sw_en": season.weather_en, "sw_zh": season.weather_zh}
    slots |= {"tool_en": tool.en, "tool_zh": tool.zh, "use_en": tool.use_en, "use_zh": tool.use_zh}
    slots |= {"day_en": WEEKDAYS_EN[day], "day2_en": WEEKDAYS_EN[(day + 1) % 7]}
    slots |= {"day_zh": WEEKDAYS_ZH[day], "day2_zh": WEEKDAYS_ZH[(day + 1) % 7]}
    return slots


def _small_tables(rng: random.Random) -> dict[str, str]:
    slots = {}
    place, place2 = rng.sample(tables.PLACES, 2)
    rows = {"time": rng.choice(tables.TIMES), "future": rng.choice(tables.FUTURE_TIMES), "place": place}
    rows |= {"place2": (capitalised(place2[0]), place2[1]), "rel": rng.choice(tables.RELATIVES)}
    rows |= {"family": rng.choice(tables.RELATIVES[:4]), "by": rng.choice(tables.TRANSPORT)}
    rows |= {"weather": rng.choice(tables.WEATHER), "colour": rng.choice(tables.COLOURS)}
    rows["feel"] = rng.choice(tables.FEELINGS)
    for name, (en, zh) in rows.items():
        slots[f"{name}_en"], slots[f"{name}_zh"] = en, zh
    slots["act_en"], slots["acted_en"], slots["acting_en"], slots["act_zh"] = rng.choice(tables.ACTIVITIES)
    return slots


def parallel_zh_en(rng: random.Random) -> Iterator[str]:
    """Documents without end: two to five sentences, each on one line with its translation on the next."""
    while True:
        slots = _people_and_things(rng) | _world(rng) | _small_tables(rng)
        chinese_first = rng.random() < 0.5
        lines: list[str] = []
        for frame_en, frame_zh in rng.sample(tables.FRAMES, rng.randint(2, 5)):
            pair = [f"英文：{capitalised(frame_en.format(**slots))}", f"中文：{frame_zh.format(**slots)}"]
            lines += reversed(pair) if chinese_first else pair
        yield "\n".join(lines)
