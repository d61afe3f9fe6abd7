"""Extended tokenizers against SentencePiece and tokenizers themselves: the base language stays, Chinese takes fewer
tokens, and text of both languages is the base's encoding with tokens joined."""

import json
import random
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mindllm_engine.corpus.chinese_pieces import chinese_runs, is_chinese
from mindllm_engine.corpus.extend_tokenizer import extend_tokenizer
from mindllm_engine.corpus.open_tokenizer import open_tokenizer
from mindllm_engine.corpus.sentencepiece_model import Piece, PieceKind, append_pieces, encodes_by_units
from mindllm_engine.corpus.special_tokens import CHAT_TOKENS, PERSONAL_DATA_TOKENS
from mindllm_engine.corpus.tokenizer import train_tokenizer
from mindllm_engine.errors import ConfigError, DataError

REPOSITORY = Path(__file__).parents[2]
ENGLISH = [(REPOSITORY / "docs" / name).read_text() for name in ("architecture.md", "data.md", "performance.md")]
ACCENTED = ["“It’s a café—naïve, señor…” élan Ünïcödé ‘Zürich’ 1,234.50 €\n"] * 20
CHINESE_WORDS = [
    "我们", "今天", "去", "图书馆", "看书", "春天", "的", "花园", "有", "很多", "人", "天气", "很好", "北京", "学习",
    "语言", "，", "。", "《", "》", "人工智能", "计算机", "二〇二三",
]  # fmt: skip
CHINESE = re.compile("[\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff7f\U00020000-\U0003ffff]")
NEW = 150
END_OF_TEXT = "<|endoftext|>"


def chinese_documents(count: int, seed: int) -> list[str]:
    chooser = random.Random(seed)
    return ["".join(chooser.choices(CHINESE_WORDS, k=60)) + "。" for _ in range(count)]


def hard_strings(count: int) -> list[str]:
    """Accents, quotes, emoji, other scripts, control characters, neighbours of the Chinese ranges, code, numbers."""
    chooser = random.Random(0)
    edges = [0x2FFF, 0x3040, 0x33FF, 0x4DC0, 0x4DFF, 0xA000, 0xF8FF, 0xFB00, 0xFEFF, 0xFF80, 0xFFFD, 0x1FFFF, 0x40000]
    blocks = [(0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x52F), (0x5D0, 0x6FF), (0x2000, 0x2BFF), (0x3040, 0x312F),
              (0xAC00, 0xD7A3), (0xE000, 0xF8FF), (0x1F300, 0x1FAFF), (0, 0x1F), (0, 0x10FFFF)]  # fmt: skip
    words = ["the ", " don’t", "“quote”", "café", "e\u0301", "\t\t", "\r\n", "  ", "x = {1: 'a'}", "3.14159", "\u2581",
             "<s>", END_OF_TEXT, "<unk>", "👩‍👩‍👧",
             "https://a.b/c?d=e", "ﬁ", "①", "かな", "カナ", "한글", "\0", "…—–‘"]  # fmt: skip

    def part() -> str:
        kind = chooser.random()
        if kind < 0.4:
            return chooser.choice(words)
        if kind < 0.5:
            return chr(chooser.choice(edges))
        first, last = chooser.choice(blocks)
        return "".join(chr(chooser.randint(first, last)) for _ in range(chooser.randint(1, 6)))

    strings = []
    while len(strings) < count:
        text = "".join(part() for _ in range(chooser.randint(1, 12)))
        text = "".join(letter for letter in CHINESE.sub("", text) if unicodedata.category(letter) != "Cs")
        strings.append(text)
    return strings


HARD_STRINGS = hard_strings(5000)


# -- Tokenizers as the libraries see them ---


@dataclass
class Library:
    """A tokenizer by its own library: `bytes_of` gives how many bytes of the normalised text an id stands for."""

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    normalize: Callable[[str], str]
    pieces: list[str]
    bytes_of: Callable[[int], int]

    def spans(self, text: str) -> list[tuple[int, int, int]]:
        """First byte, end and id of each token."""
        spans, at = [], 0
        for token in self.encode(text):
            spans.append((at, at + self.bytes_of(token), token))
            at = spans[-1][1]
        assert at == len(self.normalize(text).encode())
        return spans


def library(path: Path) -> Library:
    if path.suffix == ".model":
        sp = sentencepiece.SentencePieceProcessor(model_file=str(path))
        pieces = [sp.id_to_piece(i) for i in range(sp.vocab_size())]
        return Library(
            sp.encode, sp.decode, sp.normalize, pieces, lambda i: 1 if sp.is_byte(i) else len(pieces[i].encode())
        )
    fast = tokenizers.Tokenizer.from_file(str(path))
    fast.encode_special_tokens = True
    pieces = [fast.id_to_token(i) for i in range(fast.get_vocab_size())]
    return Library(
        lambda text: fast.encode(text, add_special_tokens=False).ids, fast.decode, str, pieces, lambda i: len(pieces[i])
    )


def train_sentencepiece_base(path: Path, texts: list[str], **changes: Any) -> Path:
    settings = {"model_type": "bpe", "vocab_size": 700, "minloglevel": 2, "byte_fallback": True} | changes
    lines = [line for text in texts for line in text.splitlines()]
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.Train(sentence_iterator=iter(lines), model_writer=file, **settings)
    return path


def train_byte_level(
    path: Path, texts: list[str], specials: Sequence[str] = (END_OF_TEXT,), vocab_size: int = 700
) -> Path:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
    return path


def gpt2_folder(folder: Path, texts: list[str]) -> Path:
    """vocab.json and merges.txt as GPT-2 came, with <|endoftext|> last."""
    content = json.loads(train_byte_level(folder.with_suffix(".json"), texts, specials=()).read_text())
    folder.mkdir()
    vocab = content["model"]["vocab"]
    (folder / "vocab.json").write_text(json.dumps(vocab | {END_OF_TEXT: len(vocab)}))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in content["model"]["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return folder


SOME_CHINESE = [*ENGLISH, *ACCENTED, *chinese_documents(20, 5), "用 Python 写的图书馆 in 北京, 春天 is 很好。\n" * 30]
BASES: dict[str, Callable[[Path], Path]] = {
    "ours": lambda folder: train_tokenizer([*ENGLISH, *ACCENTED], 700, folder / "b.model").model_path,
    "ours with some Chinese": lambda folder: train_tokenizer(SOME_CHINESE, 900, folder / "b.model").model_path,
    "nfkc bpe": lambda folder: train_sentencepiece_base(folder / "b.model", ENGLISH + ACCENTED),
    "nfkc unigram": lambda folder: train_sentencepiece_base(
        folder / "b.model", ENGLISH + ACCENTED, model_type="unigram"
    ),
    "nfkc bpe without bytes": lambda folder: train_sentencepiece_base(
        folder / "b.model", ENGLISH + ACCENTED, byte_fallback=False
    ),
    "nfkc unigram without bytes": lambda folder: train_sentencepiece_base(
        folder / "b.model", ENGLISH + ACCENTED, model_type="unigram", byte_fallback=False
    ),
    "byte level": lambda folder: train_byte_level(folder / "b.json", ENGLISH + ACCENTED),
    "byte level with some Chinese": lambda folder: train_byte_level(folder / "b.json", SOME_CHINESE),
    "gpt2": lambda folder: gpt2_folder(folder / "gpt2", ENGLISH + ACCENTED),
}
# In which each token stands for bytes of its own.
BPE_WITH_BYTES = ["ours", "ours with some Chinese", "nfkc bpe", "byte level", "byte level with some Chinese", "gpt2"]


@dataclass
class Case:
    name: str
    base_path: Path
    path: Path
    base: Library
    extended: Library


@pytest.fixture(scope="module", params=BASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("extend")
    base_path = BASES[request.param](folder)
    path = folder / f"extended{'.json' if base_path.suffix == '' else base_path.suffix}"
    texts = [*chinese_documents(200, 0), "mixed with English: 图书馆 library\n图 书\n馆"]
    extended = extend_tokenizer(base_path, texts, NEW, path)
    assert extended.vocab_size - NEW in (700, 701, 900)
    base = library(base_path if base_path.is_file() else base_path.with_suffix(".json"))
    return Case(request.param, base_path, path, base, library(path))


def test_base_ids_stay_and_new_ones_follow(case: Case) -> None:
    old, new = case.base.pieces, case.extended.pieces
    if case.name == "gpt2":
        old = [*old, END_OF_TEXT]
    assert new[: len(old)] == old
    assert len(new) == len(set(new)) == len(old) + NEW


def test_base_language_is_encoded_as_before(case: Case) -> None:
    for text in [*ENGLISH, *ACCENTED, *HARD_STRINGS]:
        if not CHINESE.search(case.base.normalize(text)):
            assert case.extended.encode(text) == case.base.encode(text)


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("\u3040\u4dc0\ua000\uff80\u2fff")
def test_any_text_without_chinese_is_encoded_as_before(case: Case, text: str) -> None:
    text = CHINESE.sub("", text)
    if not CHINESE.search(case.base.normalize(text)):
        assert case.extended.encode(text) == case.base.encode(text)


def mixed_texts(count: int) -> list[str]:
    chooser = random.Random(1)
    english = " ".join(ENGLISH).split(" ")
    parts: list[Callable[[], str]] = [
        lambda: " ".join(chooser.choices(english, k=3)),
        lambda: "".join(chooser.choices(CHINESE_WORDS, k=3)),
        lambda: chooser.choice(HARD_STRINGS),
        lambda: "".join(chr(chooser.randint(0x4E00, 0x9FFF)) for _ in range(3)),
        lambda: chooser.choice(["", " ", "\n", "，", "“", "”", "　", "（", "龘", "𠀀", "ｗｗｗ"]),
    ]
    return ["".join(chooser.choice(parts)() for _ in range(6)) for _ in range(count)]


MIXED = mixed_texts(1000)


def chinese_bytes(text: str) -> list[bool]:
    return [CHINESE.match(letter) is not None for letter in text for _ in letter.encode()]


@pytest.mark.parametrize("case", BPE_WITH_BYTES, indirect=True)
def test_text_of_both_languages_is_the_base_encoding_with_tokens_joined(case: Case) -> None:
    joined = 0
    for text in MIXED:
        base, extended = case.base.spans(text), case.extended.spans(text)
        chinese = chinese_bytes(case.base.normalize(text))
        assert {start for start, _, _ in extended} <= {start for start, _, _ in base}
        for start, end, token in set(extended) - set(base):
            assert any(chinese[start:end])
            if token >= len(case.base.pieces):
                assert all(chinese[start:end])
                joined += 1
    assert joined > 100


@pytest.mark.parametrize("case", ["nfkc unigram"], indirect=True)
def test_unigram_keeps_the_tokens_around_chinese(case: Case) -> None:
    for text in MIXED:
        chinese = chinese_bytes(case.base.normalize(text))
        base, extended = (
            [span for span in spans if not any(chinese[span[0] : span[1]])]
            for spans in (case.base.spans(text), case.extended.spans(text))
        )
        assert extended == base


def test_chinese_takes_fewer_tokens(case: Case) -> None:
    unseen = chinese_documents(50, 9)
    before = sum(len(case.base.encode(text)) for text in unseen)
    after = sum(len(case.extended.encode(text)) for text in unseen)
    if "without bytes" not in case.name:  # where a whole run is one unknown id
        assert after < before
    assert after < 0.75 * sum(map(len, unseen))
    if "nfkc" not in case.name:
        assert [case.extended.decode(case.extended.encode(text)) for text in unseen] == unseen


def test_our_tokenizers_read_the_result(case: Case) -> None:
    tokenizer = open_tokenizer(case.path)
    texts = [*chinese_documents(5, 3), *ENGLISH[:2], *HARD_STRINGS[:300], *MIXED[:100], ""]
    texts = [text.replace("\u2581", "") for text in texts]
    tokens, lengths = tokenizer.encode_batch(texts)
    expected = list(map(case.extended.encode, texts))
    assert lengths.tolist() == list(map(len, expected))
    assert tokens.tolist() == [token for ids in expected for token in ids]
    assert tokenizer.vocab_size == len(case.extended.pieces)
    if case.name.startswith("ours"):
        assert encodes_by_units(sentencepiece.SentencePieceProcessor(model_file=str(case.path)))


@pytest.mark.parametrize("case", ["byte level", "gpt2"], indirect=True)
def test_transformers_reads_a_byte_level_result(case: Case) -> None:
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(case.path))
    for text in [*chinese_documents(5, 3), *ENGLISH[:2], *MIXED[:200]]:
        if END_OF_TEXT not in text:
            assert fast.encode(text, add_special_tokens=False) == case.extended.encode(text)


def test_the_same_text_gives_the_same_file(case: Case, tmp_path: Path) -> None:
    texts = [*chinese_documents(200, 0), "mixed with English: 图书馆 library\n图 书\n馆"]
    extend_tokenizer(case.base_path, texts, NEW, tmp_path / case.path.name)
    assert (tmp_path / case.path.name).read_bytes() == case.path.read_bytes()


def test_special_tokens_follow_the_pieces(case: Case, tmp_path: Path) -> None:
    path = tmp_path / case.path.name
    tokenizer = extend_tokenizer(case.base_path, chinese_documents(200, 0), NEW, path, special_tokens=True)
    ids = [tokenizer.special_id(token) for token in (*PERSONAL_DATA_TOKENS, *CHAT_TOKENS)]
    first = len(case.extended.pieces)
    assert ids == list(range(first, first + 9))
    for token in PERSONAL_DATA_TOKENS:
        for text in (token, f"call {token}.", f"电话{token}，谢谢"):
            assert tokenizer.encode(text).count(tokenizer.special_id(token)) == 1
    for token in CHAT_TOKENS:
        assert tokenizer.special_id(token) not in tokenizer.encode(f"{token}a {token} 你{token}")
    plain = [text for text in [*ENGLISH, *HARD_STRINGS[:500]] if not CHINESE.search(case.base.normalize(text))]
    plain = [text for text in plain if "\u2581" not in text and not any(t in text for t in PERSONAL_DATA_TOKENS)]
    assert list(map(tokenizer.encode, plain)) == list(map(case.base.encode, plain))
    again = extend_tokenizer(path, [*chinese_documents(9, 3), "春夏秋冬" * 50], 5, tmp_path / f"2{path.suffix}", True)
    assert again.vocab_size == tokenizer.vocab_size + 5, "tokens that are there are not added again"


# -- What counts as Chinese ---


def test_no_other_character_begins_as_a_chinese_one() -> None:
    letters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    chinese = {letter.encode()[:size] for letter in letters if is_chinese(letter) for size in (2, 3, 4)}
    others = {letter.encode()[:size] for letter in letters if not is_chinese(letter) for size in (2, 3, 4)}
    assert not chinese & others
    assert {letter for letter in letters if is_chinese(letter)} == set(filter(CHINESE.match, letters))


def test_common_western_characters_are_not_chinese() -> None:
    assert not any(map(is_chinese, "‘’“”—–…·é£€×°ЖΩあア한\u2581\n\t 0a"))
    assert chinese_runs("Mr 王小明，“你好”ok。") == ["王小明，", "你好", "。"]


# -- Bad input ---


def test_a_base_that_cannot_be_extended_is_an_error(tmp_path: Path) -> None:
    texts = chinese_documents(20, 0)
    out = tmp_path / "out.model"

    def refused(base: Path, match: str, error: type[Exception] = DataError, pieces: int = NEW) -> None:
        with pytest.raises(error, match=match) as caught:
            extend_tokenizer(base, texts, pieces, out)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "none.model", "none.model: the tokenizer cannot be read")
    (tmp_path / "no.model").write_bytes(b"no model")
    refused(tmp_path / "no.model", "no.model: is no SentencePiece model")
    (tmp_path / "broken.json").write_bytes(b'{"model": ')
    refused(tmp_path / "broken.json", "broken.json: is no tokenizer.json")
    refused(tmp_path, "vocab.json and merges.txt cannot be read")
    char = train_sentencepiece_base(tmp_path / "char.model", ENGLISH, model_type="char", hard_vocab_limit=False)
    refused(char, "char.model: is a model of type char; only bpe and unigram")
    wordpiece = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    wordpiece.save(str(tmp_path / "wordpiece.json"))
    refused(tmp_path / "wordpiece.json", "wordpiece.json: is no byte-level BPE")
    lacking = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    lacking.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    lacking.save(str(tmp_path / "lacking.json"))
    refused(tmp_path / "lacking.json", "lacking.json: its vocabulary lacks some of the 256 bytes")
    base = train_tokenizer(ENGLISH, 500, tmp_path / "base.model").model_path
    refused(base, "pieces is 0; ask for one at least", ConfigError, pieces=0)
    low = tmp_path / "low.model"
    low.write_bytes(append_pieces(base.read_bytes(), [Piece("zzz", -3e7, PieceKind.NORMAL)]))
    refused(low, "fp32 cannot tell")
    assert not out.exists()


@pytest.mark.parametrize("name", ["ours", "nfkc unigram", "byte level"])
def test_too_little_chinese_is_an_error(tmp_path: Path, name: str) -> None:
    base = BASES[name](tmp_path)
    with pytest.raises(DataError, match=r"the text gives only \d+ new (pieces|tokens)"):
        extend_tokenizer(base, ["图书馆，天气。" * 10], 500, tmp_path / "out")
    with pytest.raises(DataError, match="there is no text"):
        extend_tokenizer(base, ["no Chinese here", "“é”"], 50, tmp_path / "out")
    assert not (tmp_path / "out").exists()
