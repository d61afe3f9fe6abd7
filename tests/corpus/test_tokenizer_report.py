"""Characters, bytes and words a token against counts made by hand, on held-out documents that no training saw."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
import sentencepiece
import xxhash

from mindllm_engine.corpus.balanced_sample import SampledSource, balanced_sample
from mindllm_engine.corpus.open_tokenizer import open_tokenizer
from mindllm_engine.corpus.readers import read_texts
from mindllm_engine.corpus.tokenizer import Tokenizer
from mindllm_engine.corpus.tokenizer_report import measure_tokenizers, table
from mindllm_engine.errors import DataError

TOOLS = Path(__file__).parents[2] / "tools"
Write = Callable[[Path, list[str]], Path]
MakeDocuments = Callable[[int, int], list[str]]
HOLDOUT = 0.2


def run(tool: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def held_out(path: Path) -> set[str]:
    return {t for t in read_texts([str(path)]) if xxhash.xxh3_64_intdigest(t.encode()) < int(HOLDOUT * 2**64)}


@pytest.fixture
def text(tmp_path: Path, write_records: Write, documents: MakeDocuments) -> Path:
    for name, seed in (("zh_a", 1), ("en_a", 2), ("en_b", 3)):
        write_records(tmp_path / "raw" / f"{name}.jsonl", documents(200, seed))
    return tmp_path / "raw"


def test_counts_are_those_of_the_text(tokenizer: Tokenizer, tmp_path: Path, write_records: Write) -> None:
    texts = ["我爱 GPT-2，真的。", "a  b\n", "", " \n"]
    path = write_records(tmp_path / "x.jsonl", texts)
    rows = measure_tokenizers({"t": tokenizer}, [SampledSource("x", "zh", [str(path)])], 0.0)
    plain = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.model_path))
    tokens = sum(len(plain.encode(text)) for text in texts[:2])
    assert [(row.lang, row.source) for row in rows] == [("zh", "x"), ("zh", "all")]
    for row in rows:
        assert (row.documents, row.characters, row.words, row.tokens) == (2, 12 + 5, 7 + 2, {"t": tokens})
        assert row.bytes == sum(len(text.encode()) for text in texts[:2])
        assert row.record()["characters_a_token"] == {"t": 17 / tokens}
        assert row.record()["fertility"] == {"t": tokens / 9}


def test_a_sample_has_no_held_out_document(text: Path) -> None:
    sources = [SampledSource(path.name, path.name[:2], [str(path)]) for path in sorted(text.iterdir())]
    kept_out = set.union(*map(held_out, text.iterdir()))
    everything = set(read_texts([str(path) for path in text.iterdir()]))
    sample = set(balanced_sample(sources, 1 << 30, 0, holdout=HOLDOUT))
    assert 60 < len(kept_out) < 180
    assert sample == everything - kept_out
    small = set(balanced_sample(sources, 20_000, 0, holdout=HOLDOUT))
    assert small
    assert not small & kept_out


def test_train_extend_and_report_by_the_tools(text: Path, tmp_path: Path) -> None:
    base, extended, figures = tmp_path / "base.model", tmp_path / "extended.model", tmp_path / "out" / "report.json"
    inputs: list[str | Path] = ["--input.zh", text / "zh_*.jsonl", "--input.en", text / "en_*.jsonl"]
    options = ["--train_bytes", "100000", "--holdout", str(HOLDOUT)]
    trained = run("train_tokenizer.py", *inputs, "--model", base, "--vocab_size", "500", *options)
    assert trained.returncode == 0, trained.stderr
    made = run(
        "extend_tokenizer.py", "--base", base, "--input", text / "zh_*.jsonl", "--model", extended, "--pieces", "10",
        "--special_tokens", "true", *options,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert made.stdout == f"{extended}: 519 ids, hash {open_tokenizer(extended).hash}\n"

    names: list[str | Path] = ["--tokenizers.base", base, "--tokenizers.extended", extended]
    done = run("report_tokenizer.py", *names, *inputs, "--holdout", str(HOLDOUT), "--json", figures)
    assert done.returncode == 0, done.stderr
    report = json.loads(figures.read_text())
    assert report["tokenizers"]["extended"] == {"vocab_size": 519, "hash": open_tokenizer(extended).hash}
    rows = {(row["lang"], row["source"]): row for row in report["rows"]}
    assert list(rows) == [("zh", "zh_a"), ("zh", "all"), ("en", "en_a"), ("en", "en_b"), ("en", "all")]
    for name in ("zh_a", "en_a", "en_b"):
        row, chosen = rows[name[:2], name], held_out(text / f"{name}.jsonl")
        assert row["documents"] == len(chosen)
        assert row["characters"] == sum(map(len, chosen))
        for model in (base, extended):
            plain = sentencepiece.SentencePieceProcessor(model_file=str(model))
            assert row["tokens"][model.stem] == sum(len(plain.encode(text)) for text in chosen)
    assert rows["en", "all"]["documents"] == rows["en", "en_a"]["documents"] + rows["en", "en_b"]["documents"]
    assert rows["zh", "all"]["tokens"]["extended"] < rows["zh", "all"]["tokens"]["base"]
    assert len(done.stdout.splitlines()) == 2 + 5
    assert f"{rows['zh', 'zh_a']['characters_a_token']['extended']:.3f}" in done.stdout.splitlines()[2]


def test_byte_limit_and_table(tokenizer: Tokenizer, text: Path) -> None:
    source = SampledSource("en_a", "en", [str(text / "en_a.jsonl")])
    first, total = measure_tokenizers({"a": tokenizer, "b": tokenizer}, [source], 0.0, max_bytes=1)
    assert (first.documents, total.documents) == (1, 1)
    lines = table([first, total]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "a: characters a token" in lines[0]


def test_mistakes_are_one_line(text: Path, tmp_path: Path, tokenizer: Tokenizer, write_records: Write) -> None:
    def mistake(tool: str, *arguments: str | Path) -> str:
        done = run(tool, *arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        return done.stderr

    model: list[str | Path] = ["--tokenizers.t", tokenizer.model_path]
    assert "no file matches" in mistake("report_tokenizer.py", *model, "--input.en", tmp_path / "none*")
    empty = write_records(tmp_path / "empty.jsonl", [" "])
    assert "empty: has no document" in mistake("report_tokenizer.py", *model, "--input.en", empty)
    with pytest.raises(DataError, match="has no document to measure"):
        measure_tokenizers({"t": tokenizer}, [SampledSource("x", "en", [str(text / "en_a.jsonl")])], 1e-9)
    facts: list[str | Path] = ["--model", tmp_path / "m", "--input", text / "*", "--pieces"]
    assert "cannot be read" in mistake("extend_tokenizer.py", "--base", tmp_path / "none", *facts, "9")
    assert "pieces is -1" in mistake("extend_tokenizer.py", "--base", tokenizer.model_path, *facts, "-1")
    assert "did you mean" in mistake("extend_tokenizer.py", "--base", "x", *facts, "9", "--piece", "3")


def test_the_config_of_the_paper_is_read(tmp_path: Path) -> None:
    config = TOOLS.parent / "configs" / "corpus" / "tokenizer_125700.yaml"
    done = run("train_tokenizer.py", "--config", config, "--input", orjson.dumps({"zh": str(tmp_path / "*")}).decode())
    assert done.returncode == 2
    assert done.stderr == f"error: no file matches {tmp_path}/*\n"
