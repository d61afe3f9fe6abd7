"""Which language a text is in: by script where that decides, else by two identifiers that need no other files.

Han decides first, because technical Chinese is half English and code, which no identifier of sentences is made for. For
the Latin script resiliparse's is asked first and believed if it says English: it is twenty times as fast, but takes a
quarter of all source code for Latin or Danish. py3langid, a naive Bayes model, decides the rest.
"""

from functools import cache
from typing import TYPE_CHECKING

from resiliparse.parse.lang import detect_fast

from mindllm_engine._native import TextProfile

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

# Of Han and Latin letters, so many Han make a text Chinese. Real Chinese pages about programming have 9 % and more (all
# but the last in twenty); English ones that quote Chinese below 1 %.
HAN_SHARE = 0.05
# Of Han and kana, so many kana make it Japanese; of Han and Hangul, so many Hangul Korean.
KANA_SHARE, HANGUL_SHARE = 0.1, 0.3
# Of all letters, so many Latin or other letters are needed to ask the identifier.
FEWEST_LETTERS = 3
SAMPLE_CHARS = 1000
# With little to go by, an identifier's guess is worth less than that letters without accents are English. Little is a
# short text, and source code: prose of any language has a text density (low_quality.py) of 98 %, code of 95 % at most.
SHORT_LETTERS = 150
PROSE_DENSITY = 0.95
# What the identifier may answer where the letters are mostly Latin. All of its languages would be too many: code and
# formulas look like Nigerian Pidgin or Latin to it.
LATIN_LANGUAGES = (
    "en", "de", "fr", "es", "pt", "it", "nl", "sv", "da", "no", "fi", "pl", "cs", "sk", "hu", "ro", "hr", "sl", "tr",
    "vi", "id", "ms", "tl", "sw", "et", "lv", "lt", "sq", "ca", "eu", "az",
)  # fmt: skip
UNKNOWN = "unknown"


def identify_language(text: str, profile: TextProfile) -> str:
    """ISO 639-1 code of the language of a text, or "unknown".

    Args:
        profile: of this text.
    """
    letters = profile.han + profile.kana + profile.hangul + profile.latin + profile.other_letters
    if letters < FEWEST_LETTERS:
        return UNKNOWN
    if profile.kana > KANA_SHARE * (profile.kana + profile.han) and profile.kana > HAN_SHARE * letters:
        return "ja"
    if profile.hangul > HANGUL_SHARE * (profile.hangul + profile.han) and profile.hangul > HAN_SHARE * letters:
        return "ko"
    if profile.other_letters > profile.latin + profile.han:
        return str(identifier(None).classify(sample(text))[0])
    if profile.han > HAN_SHARE * (profile.han + profile.latin):
        return "zh"
    prose = profile.text > PROSE_DENSITY * profile.counted
    if not profile.accented and (profile.latin < SHORT_LETTERS or not prose):
        return "en"
    excerpt = sample(text)
    if detect_fast(excerpt)[0] == "en":
        return "en"
    return str(identifier(LATIN_LANGUAGES).classify(excerpt)[0])


def sample(text: str) -> str:
    """The middle of a long text: beginnings are full of names and licences."""
    start = max(0, (len(text) - SAMPLE_CHARS) // 2)
    return text[start : start + SAMPLE_CHARS]


@cache
def identifier(languages: tuple[str, ...] | None) -> "LanguageIdentifier":
    """That of py3langid (BSD licence; its model lies in the package). Takes 0.3 s the first time in a process."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    made = LanguageIdentifier.from_model_file(MODEL_FILE)
    made.set_languages(languages)
    return made
