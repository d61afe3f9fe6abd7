"""The three tools as a user runs them: what they write, and one line and exit code 2 for a mistake."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mindllm_engine.corpus.tokenizer import Tokenizer
from mindllm_engine.data.token_files import TokenFile

TOOLS = Path(__file__).parents[2] / "tools"
Write = Callable[[Path, list[str]], Path]
MakeDocuments = Callable[[int, int], list[str]]


def _run(tool: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def _mistake(tool: str, *arguments: str | Path) -> str:
    done = _run(tool, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.fixture
def text(tmp_path: Path, write_records: Write, documents: MakeDocuments) -> Path:
    for name, seed in (("zh_a", 1), ("en_a", 2), ("en_b", 3)):
        write_records(tmp_path / "raw" / f"{name}.jsonl", documents(200, seed))
    return tmp_path / "raw"


def test_train_then_tokenize(tmp_path: Path, text: Path) -> None:
    model, out = tmp_path / "t.model", tmp_path / "out"
    inputs: list[str | Path] = ["--input.zh", text / "zh_*.jsonl", "--input.en", text / "en_*.jsonl"]
    trained = _run("train_tokenizer.py", *inputs, "--model", model, "--vocab_size", "500", "--train_bytes", "100000")
    assert trained.returncode == 0, trained.stderr
    assert Tokenizer(model).hash in trained.stdout

    facts: list[str | Path] = [
        "--name",
        "mytext",
        "--lang",
        "en",
        "--category",
        "web",
        "--tokenizer",
        model,
        "--out",
        out,
    ]
    done = _run("tokenize_corpus.py", "--input", text / "en_*.jsonl", *facts, "--holdout", "0.1", "--workers", "2")
    assert done.returncode == 0, done.stderr
    train, heldout = TokenFile(out / "mytext"), TokenFile(out / "mytext.heldout")
    assert train.documents + heldout.documents == 400
    assert f"{train.documents} documents, {train.tokens:,} tokens" in done.stdout

    listed: list[str | Path] = ["--input", f'["{text}/en_a.jsonl", "{text}/zh_a.jsonl"]', *facts, "--name", "listed"]
    assert _run("tokenize_corpus.py", *listed).returncode == 0
    assert TokenFile(out / "listed").documents == 400


def test_mistakes_are_one_line(tmp_path: Path, text: Path) -> None:
    facts: list[str | Path] = ["--name", "x", "--lang", "en", "--category", "web", "--out", tmp_path]
    no_model = _mistake("tokenize_corpus.py", "--input", text / "*.jsonl", *facts, "--tokenizer", tmp_path / "none")
    assert "the tokenizer cannot be read" in no_model
    assert "lang" in _mistake("tokenize_corpus.py", "--input", "x", "--name", "y")
    assert "did you mean workers" in _mistake("tokenize_corpus.py", "--input", "x", "--worker", "3")
    few = _mistake("train_tokenizer.py", "--input.en", text / "*", "--model", tmp_path / "m", "--vocab_size", "90000")
    assert "too little for a vocabulary of 90000" in few


def test_prepare_reads_only_the_corpus_section(tmp_path: Path, text: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"""
train: {{steps: not read here}}
corpus:
  dir: {tmp_path}/corpus
  tokenizer_vocab_size: 500
  tokenizer_train_bytes: 100000
  holdout: 0.1
  sources:
    zh_a: {{path: "{text}/zh_*.jsonl", lang: zh, category: a}}
    en: {{path: "{text}/en_*.jsonl", lang: en, category: web}}
"""
    )
    done = _run("prepare_corpus.py", "--config", config, "--corpus.holdout", "0.2")
    assert done.returncode == 0, done.stderr
    assert f"zh_a: {tmp_path}/corpus/tokens/zh_a, held out: {tmp_path}/corpus/tokens/zh_a.heldout" in done.stdout
    assert 40 < TokenFile(tmp_path / "corpus" / "tokens" / "en.heldout").documents < 120
    assert "was made with holdout 0.2, but 0.1" in _mistake("prepare_corpus.py", f"--config={config}")
    config.write_text("train: {}\n")
    assert "has no section `corpus`" in _mistake("prepare_corpus.py", "--config", config)
    assert "cannot read the config file" in _mistake("prepare_corpus.py", "--config", tmp_path / "none.yaml")
