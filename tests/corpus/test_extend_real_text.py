"""The English text of the shared data keeps its ids when a tokenizer trained on it is extended by Chinese pieces."""

import itertools
from pathlib import Path

import pytest

from mindllm_engine.corpus.chinese_pieces import is_chinese
from mindllm_engine.corpus.extend_tokenizer import extend_tokenizer
from mindllm_engine.corpus.open_tokenizer import open_tokenizer
from mindllm_engine.corpus.readers import read_texts
from mindllm_engine.corpus.tokenizer import train_tokenizer
from tests.corpus.test_extend_tokenizer import train_byte_level, train_sentencepiece_base

NEW = 4000


def real_texts(folder: Path, language: str, documents: int) -> list[str]:
    files = sorted(folder.glob(f"{language}_*.gz"))
    return [text[:3000] for file in files for text in itertools.islice(read_texts([str(file)]), documents)]


@pytest.fixture(scope="module", params=["ours", "unigram", "byte level"])
def base_and_extended(
    request: pytest.FixtureRequest, real_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("real")
    english = real_texts(real_text, "en", 100)
    if request.param == "ours":
        base = train_tokenizer(english, 4000, folder / "base.model").model_path
    elif request.param == "unigram":
        base = train_sentencepiece_base(folder / "base.model", english[::9], model_type="unigram", vocab_size=2000)
    else:
        base = train_byte_level(folder / "base.json", english, vocab_size=4000)
    extended = folder / f"extended{base.suffix}"
    extend_tokenizer(base, real_texts(real_text, "zh", 100), NEW, extended)
    return base, extended


def test_english_stays_and_chinese_shrinks(base_and_extended: tuple[Path, Path], real_text: Path) -> None:
    base, extended = map(open_tokenizer, base_and_extended)
    assert extended.vocab_size == base.vocab_size + NEW
    english = [text for text in real_texts(real_text, "en", 1000) if not any(map(is_chinese, text))]
    assert len(english) > 3000
    assert extended.encode_batch(english)[0].tolist() == base.encode_batch(english)[0].tolist()
    chinese = real_texts(real_text, "zh", 50)
    before, after = (len(tokenizer.encode_batch(chinese)[0]) for tokenizer in (base, extended))
    assert after < 0.5 * before
    assert after < 0.95 * sum(map(len, chinese))
