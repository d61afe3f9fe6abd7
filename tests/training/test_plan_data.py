"""`tools/plan_data.py` as a user runs it: the numbers it shows, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mindllm_engine.data.token_file_builder import TokenFileBuilder
from mindllm_engine.training.setup import open_data
from tests.training.test_configs import load
from tests.training.tiny_run import ROOT, environment, write_config

TOOL = ROOT / "tools" / "plan_data.py"
SIZES = {"en_book": 6_000, "en_web": 12_000, "zh_book": 4_000, "zh_web": 8_000}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=120)


def write_source(folder: Path, name: str, tokens: int) -> str:
    lang, category = name.split("_")
    prefix = folder / name
    with TokenFileBuilder(
        prefix, "uint16", name=name, lang=lang, category=category, tokenizer_hash="a" * 16, vocab_size=97
    ) as builder:
        builder.append_many(np.full(tokens, 5), np.full(tokens // 100, 100), text_bytes=4 * tokens)
    return str(prefix)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run of 12 steps of 8 samples of 32 tokens over four sources."""
    sources = {name: write_source(tmp_path, name, tokens) for name, tokens in SIZES.items()}
    return write_config(tmp_path, data__sources=sources, data__heldout={}, train__steps=100)


def complete(folder: Path, blocks: list[dict[str, Any]], name: str = "blocks.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump({"data": {"blocks": blocks}}))
    return path


def test_prints_and_writes_what_each_source_gives(tmp_path: Path, config: Path) -> None:
    """The second file completes the first, as it does in training."""
    blocks = [
        {"tokens": 300 * 32, "languages": {"zh": 1, "en": 2}, "order": "blocked"},
        {
            "languages": {"en": 1},
            "weights": {"en_web": 1},
            "seq_len": 16,
            "order": "chunked",
            "max_epochs_of": {"en_web": 9},
        },
    ]
    done = run("--config", config, "--config", complete(tmp_path, blocks), "--json", tmp_path / "plan.json")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "plan.json").read_text())
    assert [(b["samples"], b["tokens"], b["seq_len"], b["order"]) for b in summary["blocks"]] == [
        (300, 9600, 32, "blocked"),
        (500, 8000, 16, "chunked"),
    ]
    assert [(row["name"], row["samples"]) for row in summary["blocks"][0]["sources"]] == [
        ("en_book", 67), ("en_web", 133), ("zh_book", 33), ("zh_web", 67),
    ]  # fmt: skip
    web = summary["blocks"][1]["sources"][1]
    assert web["epochs"] == pytest.approx(8000 / 12_000)
    assert web["epochs_so_far"] == pytest.approx((133 * 32 + 8000) / 12_000)
    assert (web["available"], web["cap"], web["unused"]) == (12_000, 9, None)
    assert summary["blocks"][1]["sources"][2]["unused"] == "language zh has no share in languages"
    assert summary["blocks"][0]["languages"] == {"en": 6400, "zh": 3200}
    assert summary["categories"] == {"web": 200 * 32 + 8000, "book": 100 * 32}
    assert summary["tokens"] == 17_600
    shown = " ".join(done.stdout.split())
    for part in (
        "block 0: 300 samples of 32, 9,600 tokens, blocked",
        "zh : en = 1 : 2",
        "│ 12,000 │ 44.44% │ 4,256 │ 44.33% │ 0.355 │ 0.355 │ 4 │",
        "unused zh_book, zh_web: language zh has no share in languages",
        "all blocks: 800 samples, 17,600 tokens",
        f"plan {summary['hash']}, packing contiguous, seed 3",
    ):
        assert part in shown


def test_the_hash_is_that_of_the_run(tmp_path: Path, config: Path) -> None:
    from mindllm_engine.command_line import parse_arguments
    from mindllm_engine.training.config import RunConfig

    plan = open_data(parse_arguments(RunConfig, "", ["--config", str(config)])).plan
    assert run("--config", config, "--json", tmp_path / "plan.json").returncode == 0
    assert json.loads((tmp_path / "plan.json").read_text())["hash"] == plan.hash
    assert not (tmp_path / "run").exists()


def test_a_plan_beyond_its_data_is_shown_and_refused(tmp_path: Path, config: Path) -> None:
    blocks = complete(tmp_path, [{"languages": {"zh": 1, "en": 1}, "max_epochs": 1}])
    done = run("--config", config, "--config", blocks, "--json", tmp_path / "plan.json")
    assert done.returncode == 2
    assert done.stderr == (
        "error: data.blocks[0]: source zh_book would be repeated 1.07 times, above max_epochs = 1.0; lower its share, "
        "shorten the block, bring more of its text, or raise the cap\n"
    )
    assert "above cap zh_web: 1.068 epochs of 1" in " ".join(done.stdout.split())
    assert json.loads((tmp_path / "plan.json").read_text())["samples"] == 800


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.sources", '{"en_book": "nowhere/en_book"}'], "nowhere/en_book.json: missing; check the path"),
        (["--data.blocks", '[{"languages": {"fr": 1}}]'], "languages: unknown language fr; the languages are en, zh"),
        (["--data.blocks", '[{"tokens": 320}]'], "the plan holds 10 samples but train.steps needs 800"),
        (["--data.blocks", '[{"seq_len": 33}]'], "data.blocks[0].seq_len: 33 is longer than the model's max_seq_len"),
        (
            ["--data.blocks", '[{"weights": null}]'],
            "data.blocks[0].weights: null is no value; leave the key out instead",
        ),
        (["--data.blocks", '[{"max_epochs": null}]'], "data.blocks[0].max_epochs: null is no value"),
        (["--data.blocks", '[{"tokens": 64}, {}]'], "data.blocks: expected mappings with one key at least"),
        (["--data.sources", '{"en": "a", "en": "b"}'], "data.sources: the key en is given twice in one mapping"),
        (["--data.sources", '{"a\\nb": "x"}'], "data.sources: 'a\\nb': 'x' is empty or cannot be printed"),
        (["--data.sources", '{"a": "x\\0"}'], "data.sources: 'a': 'x\\x00' is empty or cannot be printed"),
        (["--jsn", "x"], "unknown key jsn; did you mean json?"),
        (["--json", "nowhere/plan.json"], "json: cannot write to nowhere/plan.json (No such file or directory)"),
    ],
)
def test_mistakes_are_one_line(config: Path, options: list[str], message: str) -> None:
    done = run("--config", config, *options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_digit_and_name_on_a_narrow_terminal(tmp_path: Path) -> None:
    """A name that looks like markup is shown as it is, and no number is cut short."""
    prefix = write_source(tmp_path, "en_" + "long" * 15, 7000)
    config = write_config(tmp_path, data__sources={"[bold]x": prefix}, data__heldout={})
    command = [sys.executable, str(TOOL), "--config", str(config)]
    environ = environment() | {"COLUMNS": "40", "FORCE_COLOR": "1", "NO_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    for shown in ("[bold]x", "7,000", "3,072", "100.00%", "0.439", "epochs"):
        assert shown in done.stdout
    assert "…" not in done.stdout


def test_text_that_is_not_yet_tokenised_is_not_tokenised(tmp_path: Path) -> None:
    content = yaml.safe_load(write_config(tmp_path).read_text())
    (tmp_path / "text.jsonl").write_text('{"text": "a b c"}\n')
    content["data"] = {"seq_len": 32}
    content["corpus"] = {
        "dir": str(tmp_path / "corpus"), "tokenizer_vocab_size": 97, "tokenizer_train_bytes": 1000, "holdout": 0.1,
        "sources": {"en_news": {"path": str(tmp_path / "text.jsonl"), "lang": "en", "category": "news"}},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    done = run("--config", tmp_path / "config.yaml")
    assert done.returncode == 2
    assert f"{tmp_path}/corpus/tokens/en_news.json: missing" in done.stderr
    assert not (tmp_path / "corpus").exists()
    (tmp_path / "corpus" / "tokens").mkdir(parents=True)
    write_source(tmp_path / "corpus" / "tokens", "en_news", 1000)
    done = run("--config", tmp_path / "config.yaml")
    assert done.returncode == 0, done.stderr
    assert "en_news" in done.stdout


def test_the_papers_mixture(tmp_path: Path) -> None:
    """18 sources, Chinese to English 1 : 1.5, to complete the config of the 3B network."""
    mixture = ROOT / "configs" / "data" / "mindllm_mixture.yaml"
    names = list(yaml.safe_load(mixture.read_text())["data"]["sources"])
    assert len(names) == 18
    assert {name.split("_")[1] for name in names} == {
        "academic", "book", "code", "dialogue", "encyclopedia", "math", "qa", "technology", "webtext",
    }  # fmt: skip
    with (tmp_path / "files.yaml").open("w") as file:
        sources = {name: write_source(tmp_path, name, 200_000) for name in names}
        yaml.safe_dump({"data": {"sources": sources}}, file)
    options = ("--train.steps", "10", "--train.global_batch_size", "100", "--train.micro_batch_size", "1")
    parts = [ROOT / "configs" / "mindllm_3b.yaml", mixture, tmp_path / "files.yaml"]
    done = run(*(part for path in parts for part in ("--config", path)), *options, "--json", tmp_path / "plan.json")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "plan.json").read_text())
    assert summary["samples"] == 1000
    languages, categories = summary["languages"], summary["categories"]
    assert languages["en"] / languages["zh"] == pytest.approx(1.5, rel=0.01)
    assert list(categories)[:2] == ["webtext", "book"]
    assert list(categories)[-1] == "math"
    shares = {row["name"]: row["share_asked"] for row in summary["blocks"][0]["sources"]}
    for category in categories:
        assert shares[f"en_{category}"] == pytest.approx(1.5 * shares[f"zh_{category}"])
    assert load("mindllm_3b").data.seq_len == 2048
