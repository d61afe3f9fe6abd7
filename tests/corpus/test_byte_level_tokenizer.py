"""The reader of tokenizer.json: lossless, special tokens only where asked for, and token files made with it."""

from pathlib import Path

import numpy as np
import orjson
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from mindllm_engine.corpus.byte_level_tokenizer import ByteLevelTokenizer
from mindllm_engine.corpus.extend_tokenizer import extend_tokenizer
from mindllm_engine.corpus.open_tokenizer import open_tokenizer
from mindllm_engine.corpus.special_tokens import CHAT_TOKENS, PERSONAL_DATA_TOKENS, PHONE, USER
from mindllm_engine.corpus.tokenize import tokenize_source
from mindllm_engine.corpus.tokenizer import Tokenizer
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import DataError
from tests.corpus.conftest import make_documents
from tests.corpus.test_extend_tokenizer import END_OF_TEXT, train_byte_level

SPECIAL = [END_OF_TEXT, *CHAT_TOKENS]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> ByteLevelTokenizer:
    folder = tmp_path_factory.mktemp("byte_level")
    base = train_byte_level(folder / "base.json", make_documents(200, 0))
    tokenizer = extend_tokenizer(base, make_documents(200, 1), 20, folder / "tokenizer.json", special_tokens=True)
    assert isinstance(tokenizer, ByteLevelTokenizer)
    return tokenizer


parts = st.sampled_from([*SPECIAL, *PERSONAL_DATA_TOKENS, "the ", "图书馆", "\t\n", "\u2581", "\0", "<|", "|>"])
texts = st.lists(st.one_of(parts, st.text(st.characters(exclude_categories=["Cs"]))), max_size=8).map("".join)


@given(texts)
@example("".join(SPECIAL))
def test_decode_gives_back_any_text_and_no_text_is_a_special_token(byte_level: ByteLevelTokenizer, text: str) -> None:
    ids = byte_level.encode(text)
    assert byte_level.decode(ids) == text
    assert not {byte_level.special_id(token) for token in SPECIAL} & set(ids)
    for token in PERSONAL_DATA_TOKENS:
        assert ids.count(byte_level.special_id(token)) == text.count(token)


@given(st.lists(texts, max_size=5))
def test_a_batch_is_its_texts_back_to_back(byte_level: ByteLevelTokenizer, batch: list[str]) -> None:
    tokens, lengths = byte_level.encode_batch(batch)
    assert tokens.dtype == lengths.dtype == np.int32
    assert tokens.tolist() == [token for text in batch for token in byte_level.encode(text)]
    assert lengths.tolist() == [len(byte_level.encode(text)) for text in batch]


def test_ids_are_as_documented(byte_level: ByteLevelTokenizer) -> None:
    oracle = tokenizers.Tokenizer.from_file(str(byte_level.model_path))
    assert byte_level.bos_id == byte_level.eos_id == oracle.token_to_id(END_OF_TEXT)
    assert byte_level.vocab_size == 700 + 20 + 9
    assert byte_level.special_id(USER) == oracle.token_to_id(USER)
    user = byte_level.special_id(USER)
    assert byte_level.decode([byte_level.bos_id, user, *byte_level.encode(f"hi {PHONE}")]) == f"hi {PHONE}"
    assert byte_level.decode(byte_level.encode("图")[:1]) in ("图", "\ufffd")
    assert len(byte_level.hash) == 16
    with pytest.raises(DataError, match=r"has no special token <\|x\|>"):
        byte_level.special_id("<|x|>")


def test_truncation_and_padding_of_the_file_are_off(byte_level: ByteLevelTokenizer, tmp_path: Path) -> None:
    fast = tokenizers.Tokenizer.from_file(str(byte_level.model_path))
    fast.enable_truncation(4)
    fast.enable_padding(length=8)
    fast.save(str(tmp_path / "t.json"))
    text = "the quick brown fox jumps over the lazy dogs"
    assert open_tokenizer(tmp_path / "t.json").encode(text) == byte_level.encode(text)


def test_documents_of_one_source_become_token_files(byte_level: ByteLevelTokenizer, tmp_path: Path) -> None:
    documents = [f"{text} {END_OF_TEXT}" for text in make_documents(60, 4)]
    raw = tmp_path / "raw.jsonl"
    raw.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in documents))
    source = tokenize_source(
        str(raw), tmp_path, name="s", lang="en", category="web", tokenizer=byte_level, holdout=0.3, workers=2
    )
    assert source.heldout_prefix is not None
    stored = []
    for prefix in (source.train_prefix, source.heldout_prefix):
        file = TokenFile(prefix)
        assert file.manifest.tokenizer_hash == byte_level.hash
        for number in range(file.documents):
            ids = file.document(number).tolist()
            assert ids[0] == ids[-1] == byte_level.eos_id
            assert byte_level.eos_id not in ids[1:-1]
            stored.append(byte_level.decode(ids))
    assert sorted(stored) == sorted(documents)


def test_a_file_is_opened_by_what_it_holds(
    byte_level: ByteLevelTokenizer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    for original in (byte_level, tokenizer):
        (tmp_path / "tokenizer.model").write_bytes(original.model_path.read_bytes())  # the name in a run folder
        opened = open_tokenizer(tmp_path / "tokenizer.model")
        assert type(opened) is type(original)
        assert opened.hash == original.hash


def test_bad_files_ids_and_texts_are_errors(byte_level: ByteLevelTokenizer, tmp_path: Path) -> None:
    for name, content, match in (
        ("half.json", byte_level.model_path.read_bytes()[:5000], "half.json: is no tokenizer.json"),
        ("empty.json", b"{}", "empty.json: is no tokenizer.json"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=match):
            open_tokenizer(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read"):
        open_tokenizer(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read"):
        ByteLevelTokenizer(tmp_path / "none.json")
    nameless = train_byte_level(tmp_path / "nameless.json", ["the quick"] * 5, specials=())
    with pytest.raises(DataError, match=r"neither <\|endoftext\|> nor <s> and </s>"):
        open_tokenizer(nameless)
    for ids in ([byte_level.vocab_size], [-1]):
        with pytest.raises(DataError, match="outside"):
            byte_level.decode(ids)
    with pytest.raises(DataError, match="lone surrogate"):
        byte_level.encode_batch(["ok", "a \ud800"])
    assert byte_level.decode(byte_level.encode("still works")) == "still works"
