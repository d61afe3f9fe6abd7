"""The tools one after the other, as a user calls them: text, tokenizer, token files, training on two ranks, report,
generation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import xxhash
import yaml

from tests.training.tiny_run import ROOT, environment


def tool(*arguments: str, ranks: int = 1) -> str:
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [*launcher, *arguments], capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """configs/demo.yaml, shortened, in a folder of its own."""
    folder = tmp_path_factory.mktemp("demo")
    config = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    config["run"]["dir"] = str(folder / "run")
    config["corpus"]["dir"] = str(folder / "data")
    for name, source in config["corpus"]["sources"].items():
        source["path"] = str(folder / "text" / f"{name}.jsonl")
    config["train"] |= {"steps": 40, "eval_every": 20}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    tool("tools/pretrain.py", "--config", str(folder / "config.yaml"), ranks=2)
    return folder


def test_the_demo_learns_from_scratch_and_reports(demo: Path) -> None:
    printed = tool("tools/report.py", str(demo / "run"))
    for part in ("en_story", "zh_story", "bpb after", "xz -9", "从前", "Once upon a time", "loss.png"):
        assert part in printed
    report = json.loads((demo / "run" / "report.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert len(rows) == 12 + 3
    assert {"en", "zh", "all"} <= set(rows)
    for row in rows.values():
        assert row["loss_after"] < row["loss_before"] - 2
        assert row["bpb_after"] < row["bpb_before"]
        assert row["bigram"] < row["unigram"]
    assert rows["all"]["xz"] > 0
    assert (demo / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    page = (demo / "run" / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")


def test_report_counts_the_bytes_of_the_held_out_text(demo: Path) -> None:
    tool("tools/report.py", str(demo / "run"))
    rows = json.loads((demo / "run" / "report.json").read_text())["rows"]
    expected = {}
    for path in (demo / "text").glob("*.jsonl"):
        texts = [json.loads(line)["text"].encode() for line in path.read_text().splitlines()]
        expected[path.stem] = sum(len(text) for text in texts if xxhash.xxh3_64_intdigest(text) < 0.03 * 2**64)
    assert {row["name"]: row["heldout_bytes"] for row in rows if row["name"] in expected} == expected


def test_generation_from_a_run(demo: Path) -> None:
    arguments = ("tools/generate.py", "--run", str(demo / "run"), "--prompt", "从前", "--max_new_tokens", "20")
    first = tool(*arguments, "--temperature", "0")
    assert first.startswith("从前")
    assert tool(*arguments, "--temperature", "0") == first


def test_another_tokenizer_than_the_data_was_made_with(demo: Path, tmp_path: Path) -> None:
    tool(
        "tools/train_tokenizer.py", "--input.en", str(demo / "text" / "en_*.jsonl"),
        "--input.zh", str(demo / "text" / "zh_*.jsonl"), "--model", str(tmp_path / "other.model"),
        "--vocab_size", "4096",
    )  # fmt: skip
    config = yaml.safe_load((demo / "config.yaml").read_text())
    del config["corpus"]
    config["data"] |= {
        "tokenizer": str(tmp_path / "other.model"),
        "sources": {"en_qa": str(demo / "data" / "tokens" / "en_qa")},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "tools/pretrain.py", "--config", str(tmp_path / "config.yaml")],
        capture_output=True, text=True, env=environment(), cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "made with tokenizer" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
