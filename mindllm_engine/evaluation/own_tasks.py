"""What the task files in tasks/ need beyond templates; they name these functions after `!function`."""

import random
from typing import Any

# Mandarin has its own code in FLORES+.
_FLORES_PLUS = {"eng_Latn": "eng_Latn", "zho_Hans": "cmn_Hans", "zho_Hant": "cmn_Hant"}


def utilitarianism_prompt(record: dict[str, Any]) -> str:
    """Which of two scenarios is better, in lm-eval's words; a coin is tossed for the place of the better one."""
    better, worse = record["activity"], record["baseline"]
    first, second = (better, worse) if utilitarianism_answer(record) else (worse, better)
    return f"Scenario 1: {first}\nScenario 2: {second}\nQuestion: Is Scenario 1 preferable?\nAnswer:"


def utilitarianism_answer(record: dict[str, Any]) -> int:
    """1 where the better scenario stands first. The coin is seeded by its text, as lm-eval's: the order is the same."""
    order = [0, 1]
    random.Random(record["activity"]).shuffle(order)
    return int(order[0] == 0)


def flores_plus(chinese: str, **metadata: Any) -> dict[str, Any]:
    """split -> sentences in English and Chinese side by side, from the hub's files of one language each."""
    import datasets

    found = {}
    for split in ("dev", "devtest"):
        sentences = {
            language: datasets.load_dataset("openlanguagedata/flores_plus", _FLORES_PLUS[language], split=split)
            for language in ("eng_Latn", chinese)
        }
        if sentences["eng_Latn"]["id"] != sentences[chinese]["id"]:
            raise ValueError(f"FLORES+ {split}: English and {chinese} do not hold the same sentences")
        columns = {f"sentence_{language}": list(rows["text"]) for language, rows in sentences.items()}
        found[split] = datasets.Dataset.from_dict(columns)
    return found


def chinese_bleu(items: list[tuple[Any, Any]]) -> float:
    """BLEU over Chinese characters, 0 to 100; the usual tokenizer takes a whole Chinese sentence for one word.

    Args:
        items: (reference, answer) for each sentence.
    """
    import sacrebleu

    references = [_only(reference) for reference, _ in items]
    answers = [_only(answer) for _, answer in items]
    return float(sacrebleu.corpus_bleu(answers, [references], tokenize="zh").score)


def _only(text: str | list[str]) -> str:
    """lm-eval hands over a text, or a list of the one text."""
    return text if isinstance(text, str) else text[0]
