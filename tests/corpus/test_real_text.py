"""Real zh and en text end to end: nothing lost, newlines kept, and a sensible number of bytes a token."""

from pathlib import Path

import numpy as np
import pytest

from mindllm_engine.corpus.balanced_sample import SampledSource, balanced_sample
from mindllm_engine.corpus.readers import read_texts
from mindllm_engine.corpus.tokenize import tokenize_source
from mindllm_engine.corpus.tokenizer import Tokenizer, train_tokenizer
from mindllm_engine.data.token_files import TokenFile

FILES = {"zh_qa": "zh_qa.jsonl.gz", "en_code": "en_code.jsonl.gz"}


@pytest.fixture(scope="module")
def real_tokenizer(real_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    sources = [SampledSource(name, name[:2], [str(real_text / file)]) for name, file in FILES.items()]
    texts = balanced_sample(sources, 2_000_000, seed=0)
    return train_tokenizer(texts, 8000, tmp_path_factory.mktemp("real") / "tokenizer.model")


@pytest.mark.parametrize(("name", "bytes_a_token"), [("zh_qa", 4.0), ("en_code", 2.5)])
def test_a_real_source_survives(
    real_text: Path, real_tokenizer: Tokenizer, tmp_path: Path, name: str, bytes_a_token: float
) -> None:
    path = str(real_text / FILES[name])
    source = tokenize_source(
        path,
        tmp_path,
        name=name,
        lang=name[:2],
        category=name[3:],
        tokenizer=real_tokenizer,
        holdout=0.02,
        workers=2,
    )
    assert source.heldout_prefix is not None
    stored: list[str] = []
    for prefix in (source.train_prefix, source.heldout_prefix):
        file = TokenFile(prefix)
        assert int(np.max(file.read(0, file.tokens))) < real_tokenizer.vocab_size
        stored += [real_tokenizer.decode(file.document(i).tolist()) for i in range(file.documents)]
    assert sorted(stored) == sorted(text for text in read_texts([path]) if text.strip())
    assert source.counts.text_bytes / source.counts.tokens > bytes_a_token
