"""The language of texts in many languages, of code, of mixtures, and of all real text by the folder it lies in."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from mindllm_engine import _native
from mindllm_engine.corpus.steps.language import UNKNOWN, identify_language


def language(text: str) -> str:
    return identify_language(text, _native.profile_text(text))


SENTENCES = {
    "zh": "这座城市位于一条宽阔的河边，夏天的傍晚人们坐在岸上聊天。",
    "en": "The town lies on a wide river, and in summer people sit on the bank in the evening and talk.",
    "de": "Die Stadt liegt an einem breiten Fluss, und im Sommer sitzen die Leute abends am Ufer und reden. Viele von "
    "ihnen arbeiten in der Fabrik am anderen Ende der Brücke, die vor mehr als hundert Jahren gebaut wurde.",
    "fr": "La ville se trouve au bord d'un large fleuve, et en été les gens restent le soir sur les quais pour parler.",
    "es": "La ciudad está junto a un río ancho, y en verano la gente se sienta por la tarde en la orilla para hablar. "
    "Muchos de ellos trabajan en la fábrica que está al otro lado del puente, construido hace más de cien años.",
    "pt": "A cidade fica junto a um rio largo, e no verão as pessoas sentam-se à noite na margem para conversar.",
    "it": "La città si trova sulla riva di un largo fiume, e d'estate la gente si siede la sera a parlare. Molti di "
    "loro lavorano nella fabbrica dall'altra parte del ponte, costruito più di cento anni fa.",
    "tr": "Şehir geniş bir nehrin kıyısındadır ve yazın insanlar akşamları kıyıda oturup konuşurlar.",
    "vi": "Thành phố nằm bên một con sông rộng, và vào mùa hè mọi người ngồi trên bờ vào buổi tối để nói chuyện.",
    "id": "Kota itu terletak di tepi sungai yang lebar, dan pada musim panas orang-orang duduk di tepi sungai pada "
    "malam hari sambil berbicara. Banyak dari mereka bekerja di pabrik di seberang jembatan yang dibangun lama sekali.",
    "ru": "Город стоит на берегу широкой реки, и летом люди вечерами сидят на набережной и разговаривают.",
    "ja": "町は広い川のほとりにあり、夏になると人々は夕方に岸辺に座って話をします。",
    "ko": "도시는 넓은 강가에 있고, 여름이면 사람들은 저녁에 강변에 앉아 이야기를 나눕니다.",
    "ar": "تقع المدينة على نهر واسع، وفي الصيف يجلس الناس على الضفة في المساء ويتحدثون.",
    "th": "เมืองนี้ตั้งอยู่ริมแม่น้ำกว้าง ในฤดูร้อนผู้คนจะนั่งคุยกันริมฝั่งในตอนเย็น",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_languages(code: str) -> None:
    assert language(SENTENCES[code]) == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", UNKNOWN),
        ("12:30 -- 14", UNKNOWN),
        ("OK then", "en"),
        ("def add(a, b):\n    return a + b\n\n\nclass Node:\n    pass\n" * 5, "en"),
        ("#include <vector>\nint main() { std::vector<int> v; return v.size(); }\n" * 5, "en"),
        ("使用 `pip install numpy` 安装。\n\n```python\nimport numpy as np\nx = np.zeros(3)\n```", "zh"),
        ("The character 中 means middle, and this page says so in English at some length.", "en"),
        ("繁體中文網頁", "zh"),
        ("鲜の味餐厅位于市中心，欢迎您来品尝", "zh"),
        ("これは日本語の文章で、漢字が含まれている。", "ja"),
    ],
)
def test_mixtures_and_scraps(text: str, code: str) -> None:
    assert language(text) == code


def test_real_text_is_in_the_language_of_its_folder(real_text: Path) -> None:
    for path in sorted(real_text.glob("*.gz")):
        found: Counter[str] = Counter()
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file):
                if number % 3 == 0:
                    found[language(json.loads(line)["text"])] += 1
        # Half of zh_academic and a few of zh_technology are English; en_technology has a text in five translations.
        expected = path.name[:2]
        share = (found[expected] + (found["en"] if path.name.startswith(("zh_ac", "zh_te")) else 0)) / found.total()
        assert share > 0.985, (path.name, found)


def test_a_long_text_costs_no_more_than_its_middle() -> None:
    text = SENTENCES["ja"] + SENTENCES["de"] * 100_000
    assert language(text) == "de"
