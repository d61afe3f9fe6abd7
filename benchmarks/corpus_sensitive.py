"""Do the searches for sensitive words and personal data keep up with the rest of the corpus pipeline?

    python benchmarks/corpus.py --only sensitive

MB of UTF-8 a CPU second, one core, best of the repetitions (all sides in turns in one process). The text is real,
Chinese and English in equal parts; the 65,000 words are random ones and words of that text itself, half and half.
"""

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mindllm_engine import _native
from mindllm_engine.corpus.readers import read_texts
from mindllm_engine.corpus.special_tokens import PERSONAL_DATA_TOKENS
from tests.corpus.steps.personal_data_cases import KINDS, generate_cases, score, spans_between
from tests.corpus.test_word_matcher import random_words

WORDS = 65_000
WORDS_BAR, PERSONAL_DATA_BAR, QUALITY_BAR = 50.0, 30.0, 0.99

Row = dict[str, Any]


def row(
    name: str, unit: str, ours: float, bar: float, peer: float | None = None, peer_name: str = "none", reason: str = ""
) -> Row:
    return {
        "name": name,
        "unit": unit,
        "ours": ours,
        "peer": peer,
        "peer_name": peer_name,
        "ratio": None if peer is None else ours / peer,
        "bar": bar,
        "holds": ours >= bar,
        "reason": reason,
    }


def real_texts(folder: Path, megabytes: float) -> list[str]:
    """Half Chinese, half English, in turns, from all files."""
    texts: list[str] = []
    for language in ("zh", "en"):
        paths = sorted(folder.glob(f"{language}_*.jsonl.gz"))
        for path in paths:
            left = megabytes * 1e6 / 2 / len(paths)
            for text in read_texts([str(path)]):
                texts.append(text)
                left -= len(text.encode())
                if left < 0:
                    break
    return texts


def words_of(texts: list[str], count: int) -> list[str]:
    """Words that the texts have, the rarer half of them: a vocabulary with hits, but not in every line."""
    found: Counter[str] = Counter()
    for text in texts[::5]:
        for run in re.findall("[\u4e00-\u9fff]{4,}", text):
            found.update(run[i : i + 4] for i in range(0, len(run) - 3, 4))
        found.update(word.lower() for word in re.findall("[A-Za-z]{6,}", text))
    return [word for word, _ in found.most_common()[-count:]]


def best_speed(sides: dict[str, Callable[[], object]], size: int, repetitions: int) -> dict[str, float]:
    """MB a second."""
    best: dict[str, float] = {}
    for _ in range(repetitions):
        for name, run in sides.items():
            begun = time.process_time()
            run()
            best[name] = max(best.get(name, 0.0), size / 1e6 / (time.process_time() - begun))
    return best


def word_rows(texts: list[str], repetitions: int) -> list[Row]:
    words = list(dict.fromkeys([*words_of(texts, WORDS // 2), *random_words(WORDS, 1)]))[:WORDS]
    matcher = _native.WordMatcher(words)
    sides: dict[str, Callable[[], object]] = {"ours": lambda: [matcher.count(text) for text in texts]}
    reasons = {}
    try:
        import ahocorasick

        peer = ahocorasick.Automaton()
        for number, word in enumerate(words):
            peer.add_word(word, number)
        peer.make_automaton()
        sides["pyahocorasick"] = lambda: [Counter(number for _, number in peer.iter(text)) for text in texts]
    except ImportError:
        reasons["pyahocorasick"] = "not installed"
    try:
        import ahocorasick_rs

        rust = ahocorasick_rs.AhoCorasick(words, matchkind=ahocorasick_rs.MatchKind.LeftmostLongest)
        sides["ahocorasick_rs"] = lambda: [Counter(m[0] for m in rust.find_matches_as_indexes(text)) for text in texts]
    except ImportError:
        reasons["ahocorasick_rs"] = "not installed"
    speeds = best_speed(sides, sum(len(text.encode()) for text in texts), repetitions)
    note = "peers neither fold case nor ask for whole words"
    return [
        row(
            f"count {len(words):,} words",
            "MB/s",
            speeds["ours"],
            WORDS_BAR,
            speeds.get(name),
            name,
            reasons.get(name, note),
        )
        for name in ("pyahocorasick", "ahocorasick_rs")
    ]


def personal_data_rows(texts: list[str], repetitions: int) -> list[Row]:
    def run() -> object:
        return [_native.replace_personal_data(text, PERSONAL_DATA_TOKENS) for text in texts]

    speed = best_speed({"ours": run}, sum(len(text.encode()) for text in texts), repetitions)["ours"]
    made = [row("replace personal data, real text", "MB/s", speed, PERSONAL_DATA_BAR)]
    cases = generate_cases(seed=100)
    tokens = dict(zip(KINDS, PERSONAL_DATA_TOKENS, strict=True))
    size = sum(len(case.text.encode()) for case in cases)
    dense = ["\n".join(case.text for case in cases)] * 10
    speed = best_speed(
        {"ours": lambda: [_native.replace_personal_data(text, PERSONAL_DATA_TOKENS) for text in dense]},
        10 * size,
        repetitions,
    )["ours"]
    made.append(row("replace personal data, the 2,000 cases", "MB/s", speed, PERSONAL_DATA_BAR))
    replaced = [_native.replace_personal_data(case.text, PERSONAL_DATA_TOKENS)[0] for case in cases]
    found = [spans_between(case.text, text, tokens) for case, text in zip(cases, replaced, strict=True)]
    for kind, result in score(cases, found).items():
        note = f"{result.right} right, {result.wrong} wrong, {result.missed} missed in {len(cases):,} generated cases"
        made.append(row(f"{kind}: precision", "share", result.precision, QUALITY_BAR, reason=note))
        made.append(row(f"{kind}: recall", "share", result.recall, QUALITY_BAR, reason=note))
    return made


def rows(data: Path, megabytes: float = 20.0, repetitions: int = 5) -> list[Row]:
    """`data`: the folder of real text, with `pretrain/<lang>_<category>.jsonl.gz` in it."""
    texts = real_texts(data / "pretrain", megabytes)
    return [*word_rows(texts, repetitions), *personal_data_rows(texts, repetitions)]
