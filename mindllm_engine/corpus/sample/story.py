"""The sources `en_story` and `zh_story`: short stories told from plots, with the same people and things throughout.

The words are in tables_story_en.py and tables_story_zh.py; here the slots of one story are drawn, so that a name, a
pronoun, a season or a toy stays the same from the first sentence to the last.
"""

import random
from collections.abc import Iterator

from mindllm_engine.corpus.sample import tables_story_en as english
from mindllm_engine.corpus.sample import tables_story_zh as chinese
from mindllm_engine.corpus.sample.phrases import tell, with_article

FABLE_SHARE = 0.2


def _slots_en(rng: random.Random) -> dict[str, str]:
    slots = {name: rng.choice(values) for name, values in english.SLOTS.items()}
    slots["hiding2"] = slots["hiding"] if slots["hiding"] not in english.INDOORS else "beside the road"
    slots["food2"] = rng.choice([food for food in english.SLOTS["food"] if food != slots["food"]])
    slots["a_plant"] = with_article(slots["plant"])
    slots["elder_he"] = "she" if slots["elder"] in ("grandmother", "mother", "aunt") else "he"
    hero_is_boy, friend_is_boy = rng.random() < 0.5, rng.random() < 0.5
    slots["hero"] = rng.choice(english.BOYS if hero_is_boy else english.GIRLS)
    others = [name for name in (english.BOYS if friend_is_boy else english.GIRLS) if name != slots["hero"]]
    slots["friend"] = rng.choice(others)
    slots["child"] = "boy" if hero_is_boy else "girl"
    slots["he"], slots["him"], slots["his"] = ("he", "him", "his") if hero_is_boy else ("she", "her", "her")
    slots["fhe"], slots["fhis"] = ("he", "his") if friend_is_boy else ("she", "her")
    slots["He"], slots["fHe"] = slots["he"].capitalize(), slots["fhe"].capitalize()
    return slots


def en_story(rng: random.Random) -> Iterator[str]:
    """Documents without end: one story each, `FABLE_SHARE` of them fables."""
    while True:
        slots = _slots_en(rng)
        fable = rng.random() < FABLE_SHARE
        plot, seasons = (english.FABLE, english.FABLE_SEASONS) if fable else rng.choice(english.PLOTS)
        slots["season"], slots["scene"] = rng.choice([scene for scene in english.SCENES if scene[0] in seasons])
        if fable:
            slots["proud"], slots["steady"], slots["contest"], slots["goal"] = rng.choice(english.RIVALS)
            slots["a_proud"], slots["a_steady"] = with_article(slots["proud"]), with_article(slots["steady"])
            slots["goal2"] = slots["goal"].replace("to ", "at ", 1)
            slots["home"] = rng.choice(english.HOMES)
        beats = plot if fable else [english.OPENINGS, english.MORNINGS, *plot]
        yield " ".join(tell(rng, beats, slots))


def _slots_zh(rng: random.Random) -> dict[str, str]:
    slots = {name: rng.choice(values) for name, values in chinese.SLOTS.items()}
    slots["food2"] = rng.choice([food for food in chinese.SLOTS["food"] if food != slots["food"]])
    slots["toy"], slots["toy_m"] = rng.choice(chinese.TOYS)
    slots["animal"], slots["animal_m"] = rng.choice(chinese.ANIMALS)
    slots["plant"], slots["plant_m"] = rng.choice(chinese.PLANTS)
    hero_is_boy, friend_is_boy = rng.random() < 0.5, rng.random() < 0.5
    slots["hero"] = rng.choice(chinese.BOYS if hero_is_boy else chinese.GIRLS)
    others = [name for name in (chinese.BOYS if friend_is_boy else chinese.GIRLS) if name != slots["hero"]]
    slots["friend"] = rng.choice(others)
    slots["child"], slots["he"] = ("男孩", "他") if hero_is_boy else ("女孩", "她")
    slots["fhe"] = "他" if friend_is_boy else "她"
    slots["they"] = "他们" if hero_is_boy or friend_is_boy else "她们"
    return slots


def zh_story(rng: random.Random) -> Iterator[str]:
    """As `en_story`, in Chinese."""
    while True:
        slots = _slots_zh(rng)
        fable = rng.random() < FABLE_SHARE
        plot, seasons = (chinese.FABLE, chinese.FABLE_SEASONS) if fable else rng.choice(chinese.PLOTS)
        slots["season"], slots["scene"] = rng.choice([scene for scene in chinese.SCENES if scene[0] in seasons])
        if fable:
            slots["proud"], slots["steady"], slots["contest"], slots["goal"] = rng.choice(chinese.RIVALS)
            slots["home"] = rng.choice(chinese.HOMES)
        beats = plot if fable else [chinese.OPENINGS, chinese.MORNINGS, *plot]
        yield "".join(tell(rng, beats, slots))
