"""Text made on the spot, a small tokenizer trained on it, and the folder of real text where there is one."""

import random
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from mindllm_engine.corpus.tokenizer import Tokenizer, train_tokenizer
from tests.real_data import REAL_DATA

EN_WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dogs",
    "while",
    "ships",
    "carry",
    "tea",
    "in",
    "1842",
]
ZH_WORDS = [
    "我们",
    "今天",
    "去",
    "图书馆",
    "看书",
    "春天",
    "的",
    "花园",
    "有",
    "很多",
    "人",
    "天气",
    "很好",
    "北京",
    "学习",
    "语言",
]
CODE = "def add(a, b):\n\tif a > 10:\n\t\treturn a + b\n\n    # spaces\n    return {'x': [1, 2]}\n"


def make_documents(count: int, seed: int) -> list[str]:
    """Different documents of zh, en and code, some hundred characters each."""
    chooser = random.Random(seed)
    documents = []
    for number in range(count):
        en = " ".join(chooser.choices(EN_WORDS, k=30))
        zh = "".join(chooser.choices(ZH_WORDS, k=30))
        documents.append(f"#{seed}.{number} {en}.\n\n{zh}。\n{CODE if number % 5 == 0 else ''}")
    return documents


@pytest.fixture(scope="session")
def documents() -> Callable[[int, int], list[str]]:
    return make_documents


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(make_documents(400, 0), 600, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


@pytest.fixture(scope="session")
def write_records() -> Callable[[Path, list[str]], Path]:
    def write(path: Path, texts: list[str]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(orjson.dumps({"id": i, "text": text}) + b"\n" for i, text in enumerate(texts)))
        return path

    return write


@pytest.fixture(scope="session")
def real_text() -> Path:
    folder = REAL_DATA / "pretrain"
    if not folder.is_dir():
        pytest.skip(f"no real text in {folder}: set MINDLLM_DATA to its folder")
    return folder
