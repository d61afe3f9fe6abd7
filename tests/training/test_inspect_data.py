"""`tools/inspect_data.py` as a user runs it: the texts it shows are those of the corpus, and what it refuses."""

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mindllm_engine.corpus.tokenizer import train_tokenizer
from mindllm_engine.data.token_file_builder import TokenFileBuilder
from tests.corpus.conftest import make_documents
from tests.data.remote_servers import range_server
from tests.training.tiny_run import ROOT, environment, write_config

TOOL = ROOT / "tools" / "inspect_data.py"
TOKENIZER_IDS = 500


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=120)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The line that the tool ends with, run in this process, which takes a tenth of the time."""

    def refuse(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(TOOL), run_name="__main__")
        assert ended.value.code == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ")
        assert line.count("\n") == 1
        return line

    return refuse


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `prepare_corpus` leaves it: tokenizer.model, and two sources of 90 documents under tokens/."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "tokens").mkdir()
    texts = {f"{lang}_web": make_documents(90, seed) for seed, lang in enumerate(("en", "zh"))}
    tokenizer = train_tokenizer(
        [text for some in texts.values() for text in some], TOKENIZER_IDS, folder / "tokenizer.model"
    )
    for name, some in texts.items():
        with TokenFileBuilder(
            folder / "tokens" / name, "uint16", name=name, lang=name[:2], category="web",
            tokenizer_hash=tokenizer.hash, vocab_size=TOKENIZER_IDS,
        ) as builder:  # fmt: skip
            for text in some:
                ids = np.array([1, *tokenizer.encode(text), 2])
                builder.append_many(ids, np.array([len(ids)]), text_bytes=len(text.encode()))
    (folder / "texts.json").write_text(json.dumps(texts))
    return folder


def config_of(folder: Path, corpus: Path, **data: Any) -> Path:
    """A run of 100 steps of 8 samples over the corpus."""
    path = write_config(folder)
    content = yaml.safe_load(path.read_text())
    content["model"]["mindllm"] |= {"vocab_size": TOKENIZER_IDS, "max_seq_len": 128}
    content["train"]["steps"] = 100
    sources = {name: str(corpus / "tokens" / name) for name in ("en_web", "zh_web")}
    content["data"] = {"seq_len": 128, "sources": sources, "tokenizer": str(corpus / "tokenizer.model")} | data
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("packing", "order"),
    [("contiguous", "shuffled"), ("contiguous", "blocked"), ("best_fit", "chunked"), ("best_fit", "blocked")],
)
def test_shows_the_texts_of_the_corpus(tmp_path: Path, corpus: Path, packing: str, order: str) -> None:
    config = config_of(tmp_path, corpus, packing=packing, blocks=[{"order": order, "max_epochs": 100}])
    samples = [0, 17, *range(700, 740)]
    options = ("--samples", ",".join(map(str, samples)), "--out", tmp_path / "out", "--json", tmp_path / "found.json")
    done = run("--config", config, *options)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    texts = json.loads((corpus / "texts.json").read_text())
    assert [sample["sample"] for sample in found["samples"]] == samples
    whole = 0
    for sample in found["samples"]:
        for piece in sample["pieces"]:
            text = texts[sample["source"]][piece["document"]]
            if piece["begin"] == 0 and piece["end"] == piece["length"]:
                assert piece["text"] == text
                whole += 1
            else:
                # Where a character of several bytes is cut, what is left of it is no character.
                assert re.sub("^\ufffd+|\ufffd+$", "", piece["text"]) in text
    assert whole > 0
    first = found["samples"][0]["pieces"][0]
    assert (
        f"document {first['document']}, tokens [{first['begin']}, {first['end']}) of {first['length']}" in done.stdout
    )
    assert [int(number) for number in re.findall(r"^sample (\d+):", done.stdout, re.MULTILINE)] == samples
    assert ("packed 128" in done.stdout) == (packing == "best_fit")
    assert [source["lengths"]["documents"] for source in found["sources"]] == [90, 90]
    for source in found["sources"]:
        assert source["tokens_per_byte"] == pytest.approx(
            source["lengths"]["tokens"] / sum(len(text.encode()) for text in texts[source["name"]])
        )
        epochs = next(row for row in found["plan"]["blocks"][0]["sources"] if row["name"] == source["name"])["epochs"]
        assert source["epochs"] == pytest.approx(epochs)
    shares = found["course"]["shares"]
    assert np.sum([shares["en_web"], shares["zh_web"]], axis=0).tolist() == pytest.approx([1.0] * len(shares["en_web"]))
    assert found["course"]["edges"][-1] == 800 * 128
    assert (tmp_path / "out" / "mixture.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "run").exists()


def test_by_default_some_samples_and_the_run_folder(tmp_path: Path, corpus: Path) -> None:
    done = run("--config", config_of(tmp_path, corpus, blocks=[{"max_epochs": 100}]))
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^sample (\d+):", done.stdout, re.MULTILINE) == ["0", "266", "532", "799"]
    assert f"picture of the mixture: {tmp_path}/run/mixture.png" in done.stdout
    assert (tmp_path / "run" / "mixture.png").exists()


def test_the_corpus_section_and_a_run_without_a_tokenizer(tmp_path: Path, corpus: Path) -> None:
    config = config_of(tmp_path, corpus, blocks=[{"max_epochs": 100}])
    content = yaml.safe_load(config.read_text())
    del content["data"]["tokenizer"]
    config.write_text(yaml.safe_dump(content))
    done = run("--config", config, "--samples", "3", "--json", tmp_path / "ids.json")
    assert done.returncode == 0, done.stderr
    (sample,) = json.loads((tmp_path / "ids.json").read_text())["samples"]
    assert " ".join(map(str, sample["pieces"][0]["ids"][:16])) in done.stdout

    del content["data"]["sources"]
    content["corpus"] = {
        "dir": str(corpus), "tokenizer_vocab_size": TOKENIZER_IDS, "tokenizer_train_bytes": 1000, "holdout": 0.1,
        "sources": {f"{lang}_web": {"path": "nowhere.jsonl", "lang": lang, "category": "web"} for lang in ("en", "zh")},
    }  # fmt: skip
    config.write_text(yaml.safe_dump(content))
    done = run("--config", config, "--samples", "3", "--json", tmp_path / "text.json")
    assert done.returncode == 0, done.stderr
    (decoded,) = json.loads((tmp_path / "text.json").read_text())["samples"]
    texts = json.loads((corpus / "texts.json").read_text())
    assert decoded["pieces"][0]["text"].strip("\ufffd") in texts[decoded["source"]][decoded["pieces"][0]["document"]]


def test_remote_sources_are_read_as_local_ones(tmp_path: Path, corpus: Path) -> None:
    config = config_of(tmp_path, corpus, blocks=[{"max_epochs": 100}])
    assert run("--config", config, "--samples", "3,500", "--json", tmp_path / "local.json").returncode == 0
    with range_server(corpus / "tokens") as server:
        sources = {"en_web": f"{server.url}/en_web", "zh_web": str(corpus / "tokens" / "zh_web")}
        cache = str(tmp_path / "cache")
        config = config_of(tmp_path, corpus, blocks=[{"max_epochs": 100}], sources=sources, cache=cache)
        done = run("--config", config, "--samples", "3,500", "--json", tmp_path / "remote.json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "local.json").read_bytes() == (tmp_path / "remote.json").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "3,800"], "samples: the plan has no sample 800; its 800 are 0 to 799"),
        (["--samples", "3;4"], "samples: '3;4' is no list of sample numbers; give one such as 0,17,1000000"),
        (["--samples", "-1"], "samples"),
        (["--samples", "1" * 5000], "is no list of sample numbers"),
        (["--data.sources", '{"en_web": "nowhere/en_web"}'], "nowhere/en_web.json: missing; check the path"),
        (["--data.tokenizer", "nowhere.model"], "nowhere.model: the tokenizer cannot be read"),
        (["--data.blocks", '[{"max_epochs": 1}]'], "would be repeated"),
        (["--json", "nowhere/found.json"], "json: cannot write to nowhere/found.json (No such file or directory)"),
        (["--smples", "x"], "unknown key smples; did you mean samples?"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, corpus: Path, options: list[str], message: str, refused: Callable[..., str]
) -> None:
    config = config_of(tmp_path, corpus, blocks=[{"max_epochs": 100}])
    assert message in refused("--config", config, *options)


def test_a_picture_that_cannot_be_written_is_one_line(
    tmp_path: Path, corpus: Path, refused: Callable[..., str]
) -> None:
    config = config_of(tmp_path, corpus, blocks=[{"max_epochs": 100}])
    (tmp_path / "file").write_text("")
    assert f"{tmp_path}/file" in refused("--config", config, "--out", tmp_path / "file")


def test_another_tokenizer_is_refused(tmp_path: Path, corpus: Path) -> None:
    train_tokenizer(make_documents(50, 9), TOKENIZER_IDS, tmp_path / "other.model")
    config = config_of(tmp_path, corpus, tokenizer=str(tmp_path / "other.model"))
    done = run("--config", config)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "made with tokenizer" in done.stderr


def test_damaged_files_are_one_line(tmp_path: Path, corpus: Path, refused: Callable[..., str]) -> None:
    for path in (corpus / "tokens").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    sources = {name: str(tmp_path / name) for name in ("en_web", "zh_web")}
    config = config_of(tmp_path, corpus, sources=sources, blocks=[{"max_epochs": 100}])
    index = tmp_path / "en_web.idx"
    sound = index.read_bytes()
    damaged = bytearray(sound)
    damaged[34 + 8 : 34 + 12] = np.int32(-1).tobytes()
    index.write_bytes(damaged)
    assert "en_web.idx: damaged: a sequence from 0 on has a negative length" in refused("--config", config)
    index.write_bytes(sound)

    data = tmp_path / "en_web.bin"
    with data.open("r+b") as file:
        file.write(b"\x05\x00")
    message = refused("--config", config, "--data.verify", "true")
    assert "en_web.bin: damaged: chunk 0, from byte 0 to " in message
    os.truncate(data, data.stat().st_size - 2)
    assert "en_web" in refused("--config", config)
