"""Sums to be learnt: all additions and subtractions of small numbers, in the words of GPT-3's arithmetic tasks (arXiv
2005.14165, section 3.9.1), with some held out to tell what is learnt from what is remembered."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import xxhash

from mindllm_engine.data.atomic_files import write_atomically
from mindllm_engine.errors import ConfigError, DataError

WORDS = {"addition": "plus", "subtraction": "minus"}


@dataclass(frozen=True)
class Sum:
    """One question and its answer, as `arithmetic_2da` and its siblings put them.

    Attributes:
        task: addition or subtraction.
    """

    task: str
    context: str
    completion: str


def all_sums(largest: int) -> Iterator[Sum]:
    """Every a plus b and a minus b of 0 <= a, b <= largest."""
    for task, word in WORDS.items():
        for a in range(largest + 1):
            for b in range(largest + 1):
                result = a + b if task == "addition" else a - b
                yield Sum(task, f"\n\nQ: What is {a} {word} {b}?\n\nA:", f" {result}")


def write_arithmetic(folder: Path, largest: int, holdout: float, questions: int, seed: int) -> dict[str, int]:
    """Write `train.jsonl` (instruction and output, for tuning) and, as questions of tasks, `seen.jsonl` and
    `heldout.jsonl` of at most `questions` sums each, drawn with `seed`.

    A sum is held out by the hash of its question.

    Returns:
        File name -> records.

    Raises:
        ConfigError: an impossible number.
        DataError: the folder cannot be written.
    """
    if largest < 1 or not 0 <= holdout < 1 or questions < 1:
        raise ConfigError(
            f"arithmetic: largest {largest} and questions {questions} must be at least 1, holdout {holdout} in [0, 1)"
        )
    train: list[Sum] = []
    heldout: list[Sum] = []
    for one in all_sums(largest):
        share = xxhash.xxh3_64_intdigest(one.context.encode()) / 2**64
        (heldout if share < holdout else train).append(one)
    if not train:
        raise ConfigError(f"arithmetic: holdout {holdout} of the sums up to {largest} leaves none to train on")
    generator = random.Random(seed)
    generator.shuffle(train)
    generator.shuffle(heldout)
    files: dict[str, list[dict[str, str]]] = {
        "train.jsonl": [{"instruction": one.context, "output": one.completion} for one in train],
        "seen.jsonl": [vars(one) for one in train[:questions]],
        "heldout.jsonl": [vars(one) for one in heldout[:questions]],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, records in files.items():
            write_atomically(folder / name, b"".join(orjson.dumps(record) + b"\n" for record in records))
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    return {name: len(records) for name, records in files.items()}
