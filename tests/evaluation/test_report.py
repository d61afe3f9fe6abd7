"""The report of runs: what it says against the records it was made from, several runs side by side, hostile texts, and
folders that hold no run."""

import html.parser
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest

from mindllm_engine.data.token_file_builder import TokenFileBuilder
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.evaluation.report import make_report
from mindllm_engine.evaluation.run_facts import sources_of, speed_of
from mindllm_engine.training.environment import read_environments
from tests.training.tiny_run import ROOT, VOCAB, environment, train_here, write_config


class Page(html.parser.HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and a second one of another seed beside it."""
    folder = tmp_path_factory.mktemp("runs")
    config = write_config(folder)
    train_here(config)
    train_here(config, "--run.dir", str(folder / "second"), "--run.seed", "4")
    return folder


def test_the_files_of_one_run_hold_its_records(folder: Path) -> None:
    (run,) = make_report([folder / "run"], ["x"], None)
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluated = [record for record in records if "heldout_bpb" in record]
    report = json.loads((folder / "run" / "report.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert set(rows) == {"en", "zh", "all"}  # the sources are called like their languages
    assert rows["all"]["bpb_after"] == pytest.approx(evaluated[-1]["heldout_bpb"])
    assert rows["all"]["loss_before"] == pytest.approx(evaluated[0]["heldout_loss"])
    assert run.tokens == records[-1]["tokens"] == report["tokens"]
    speeds = [record["tokens_per_second"] for record in records if "tokens_per_second" in record][1:]
    assert run.speed.tokens_per_second == statistics.median(speeds)
    assert (folder / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    page = Page(folder / "run" / "report.html")
    assert f"{run.tokens:,}" in page.text
    assert "seed: 3" in page.text  # the configuration
    assert read_environments(folder / "run")[0].processor in page.text


def test_several_runs_stand_side_by_side_in_one_page(folder: Path) -> None:
    out = folder / "pages" / "both.html"
    before = {path: path.stat().st_mtime_ns for path in (folder / "second").iterdir()}
    runs = make_report([folder / "run", folder / "second"], [], out)
    assert [run.name for run in runs] == ["run", "second"]
    page = Page(out)
    assert "2 runs" in page.text
    assert page.tags.count("h2") == 2
    assert page.tags.count("img") == 2
    assert {path: path.stat().st_mtime_ns for path in (folder / "second").iterdir()} == before, "no run is touched"


def test_runs_of_the_same_name_are_told_apart(folder: Path) -> None:
    shutil.copytree(folder / "run", folder / "other" / "run", dirs_exist_ok=True)
    runs = make_report([folder / "run", folder / "other" / "run"], [], folder / "same.html")
    assert [run.name for run in runs] == [str(folder / "run"), str(folder / "other" / "run")]


def test_the_tool_takes_runs_as_they_stand(folder: Path) -> None:
    out = folder / "tool.html"
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "report.py", folder / "run", folder / "second", "--out", out],
        capture_output=True, text=True, env=environment(), timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "second: " in done.stdout
    assert out.exists()


def test_texts_are_no_markup(folder: Path) -> None:
    named = folder / "<script>alert(1)<|script>"
    shutil.copytree(folder / "run", named)
    out = folder / "hostile.html"
    make_report([named], ["<b>"], out)
    page = Page(out)
    assert "script" not in page.tags
    assert named.name in page.text


def test_a_run_whose_data_is_gone_is_reported_without_baselines(folder: Path) -> None:
    os.rename(folder / "en.idx", folder / "en.idx.away")
    try:
        (run,) = make_report([folder / "run"], [], folder / "gone.html")
    finally:
        os.rename(folder / "en.idx.away", folder / "en.idx")
    assert run.rows == []
    assert "not at hand" in run.note
    assert "not at hand" in Page(folder / "gone.html").text


def test_a_tuned_run_is_not_compared_with_models_of_whole_texts(tmp_path: Path) -> None:
    config = write_config(tmp_path, data__packing="best_fit")
    learnt = {}
    for path in sorted(tmp_path.glob("*.json")):
        file = TokenFile(tmp_path / path.stem)
        tokens, lengths = file.read(0, file.tokens), file.lengths
        mask = (np.arange(len(tokens)) % 3 == 0).astype(np.uint8)
        mask[np.cumsum(lengths) - lengths] = 0
        learnt[path.stem] = int(mask.sum())
        facts = {name: getattr(file.manifest, name) for name in ("name", "lang", "category", "tokenizer_hash")}
        with TokenFileBuilder(tmp_path / path.stem, "uint16", vocab_size=VOCAB, masked=True, **facts) as builder:
            builder.append_many(tokens, lengths, text_bytes=learnt[path.stem], mask=mask)
    train_here(config)
    (run,) = make_report([tmp_path / "run"], [], None)
    rows = {row.name: row for row in run.rows}
    assert all(row.unigram is row.bigram is row.own_bigram is row.xz is None for row in run.rows)
    # Weighted by what is learnt: so is the loop's own mean over both sources.
    heldout = [learnt["en.heldout"], learnt["zh.heldout"]]
    by_source = [next(row.loss_after for row in run.rows if row.name == lang) for lang in ("en", "zh")]
    assert rows["all"].loss_after == pytest.approx(np.average(by_source, weights=heldout))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows["all"].loss_after == pytest.approx(records[-1]["heldout_loss"])
    assert rows["all"].bpb_after == pytest.approx(records[-1]["heldout_bpb"])


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no run with records"):
        make_report([tmp_path], [], None)
    with pytest.raises(ConfigError, match="name one run folder"):
        make_report([], [], None)
    with pytest.raises(ConfigError, match="--out"):
        make_report([tmp_path, tmp_path], [], None)


def test_a_page_that_cannot_be_written(folder: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        make_report([folder / "run"], [], folder / "config.yaml" / "page.html")


def test_starts_that_a_kill_cut_short_are_left_out(tmp_path: Path) -> None:
    assert read_environments(tmp_path) == []
    fields = {"ranks": 1, "cores": 2, "memory_gib": 1.0, "cuda": None}
    fields |= dict.fromkeys(("started", "device", "processor", "engine", "torch", "python"), "x")
    line = orjson.dumps(fields)
    (tmp_path / "environment.jsonl").write_bytes(line + b"\n" + b'{"other": 1}\n' + line[:20])
    (found,) = read_environments(tmp_path)
    assert found.cores == 2


def test_speed_and_sources_of_few_records() -> None:
    assert speed_of([{"step": 1, "tokens": 8, "tokens_per_second": 5.0}]).tokens_per_second is None
    assert sources_of([{"loss/b": 1.0}, {"heldout_bpb/a": 1.0, "loss": 2.0}, {"loss/b": 2.0}]) == ["b", "a"]
