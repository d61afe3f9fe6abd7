"""The corpus pipeline as a whole on small raw files of every kind: what is written does not depend on the number of
tasks or the executor, an interrupted run goes on, a second one does nothing, a changed setting repeats what depends on
it."""

import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
import zstandard

pytest.importorskip("datatrove", reason="the extra [corpus] is not installed")

ROOT = Path(__file__).resolve().parents[2]
EN_WORDS = re.findall(
    r"\w+",
    """river stone window letter garden music winter paper silver morning question answer market station harbour engine
    forest signal number pattern circle shadow bridge kitchen village doctor history ocean theatre captain measure
    colour journey science teacher island machine library mountain summer evening painter bottle candle""",
)
ZH_CHARS = (
    "山水天地人和大小多少春夏秋冬风雨云雪花草树木江河湖海东西南北城市道路车马书画诗文学生先师工农商兵日月星光早晚时"
)


def english(seed: int, words: int = 160) -> str:
    choice = random.Random(seed)
    sentences = []
    while words > 0:
        length = choice.randint(6, 14)
        sentence = " ".join(choice.choice(EN_WORDS) for _ in range(length))
        sentences.append(f"The {sentence}.")
        words -= length
    return " ".join(sentences)


def chinese(seed: int, chars: int = 260) -> str:
    choice = random.Random(seed)
    sentences = []
    while chars > 0:
        length = choice.randint(8, 20)
        sentences.append("".join(choice.choice(ZH_CHARS) for _ in range(length)) + "。")
        chars -= length
    return "".join(sentences)


def write_raw(folder: Path) -> None:
    """Three sources: pages as HTML, a Chinese and an English one as JSON lines; faults in each."""
    folder.mkdir()
    for number in range(3):
        paragraphs = "".join(f"<p>{english(900 + 10 * number + part)}</p>" for part in range(3))
        page = f"<html><head><title>t</title><script>var x = 1;</script></head><body>{paragraphs}</body></html>"
        (folder / f"page{number}.html").write_text(page)
    for part in range(3):
        records = [{"id": f"zh{part}-{number}", "text": chinese(100 * part + number)} for number in range(20)]
        records.append({"id": f"short{part}", "text": "太短了。"})
        records.append({"id": f"copy{part}", "text": chinese(0)})  # of the first document of the first file
        with gzip.open(folder / f"zh_{part}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    records = [{"id": f"en{number}", "text": english(number)} for number in range(20)]
    records[3]["text"] += " Write to someone.real@mailhost.org, not to user@example.com."
    records[4] = {"id": "repeats", "text": "buy this now " * 200}
    lines = [json.dumps(record) for record in records]
    lines[7] = "{not json"
    (folder / "en.jsonl").write_text("\n".join(lines) + "\n")


def config_of(tmp_path: Path, name: str = "corpus", **changes: Any) -> Path:
    raw = tmp_path / "raw"
    if not raw.exists():
        write_raw(raw)
    config = {
        "dir": str(tmp_path / name),
        "sources": {
            "zh_text": {"path": f"{raw}/zh_*.jsonl.gz", "category": "webtext"},
            "en_text": {"path": f"{raw}/en.jsonl", "category": "webtext"},
            "pages": {"path": f"{raw}/page*.html", "category": "webtext"},
        },
        **changes,
    }
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def build(config: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/build_corpus.py", "--config", str(config), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280)


def outputs(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "documents").rglob("*.zst"))}


def documents(folder: Path) -> list[dict[str, Any]]:
    found = []
    for data in outputs(folder).values():
        text = zstandard.ZstdDecompressor().decompressobj().decompress(data).decode()
        found += [json.loads(line) for line in text.splitlines()]
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, built by two tasks at a time."""
    folder = tmp_path_factory.mktemp("built")
    result = build(config_of(folder))
    assert result.returncode == 0, result.stderr
    return folder


def test_documents_are_those_that_are_expected(built: Path) -> None:
    found = {document.get("record_id", document["id"]): document for document in documents(built / "corpus")}
    dropped = {"short0", "short1", "short2", "copy0", "copy1", "copy2", "repeats"}
    expected = {f"zh{part}-{number}" for part in range(3) for number in range(20)}
    expected |= {f"en{number}" for number in range(20) if number not in (4, 7)}
    assert {key for key in found if not key.startswith("pages")} == expected
    assert not dropped & set(found)
    assert sum(key.startswith("pages") for key in found) == 3
    assert "someone.real@mailhost.org" not in found["en3"]["text"]
    assert "user@example.com" in found["en3"]["text"], "nobody's"
    assert "<|email|>" in found["en3"]["text"]
    assert found["zh0-0"]["lang"] == "zh"
    assert found["en3"]["lang"] == "en"
    assert found["en3"]["text"].startswith(english(3)[:40])


def test_the_report_counts_everything(built: Path) -> None:
    report = json.loads((built / "corpus" / "report.json").read_text())
    text = json.dumps(report)
    for reason in ("malformed JSON", "duplicate"):
        assert reason in text
    assert (built / "corpus" / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("options", [["--executor.tasks", "1"], ["--executor.workers", "1"]])
def test_the_number_of_tasks_changes_nothing(built: Path, tmp_path: Path, options: list[str]) -> None:
    shutil.copytree(built / "raw", tmp_path / "raw", copy_function=shutil.copy2)
    result = build(config_of(tmp_path), *options)
    assert result.returncode == 0, result.stderr
    assert outputs(tmp_path / "corpus") == outputs(built / "corpus")
    assert (tmp_path / "corpus" / "report.json").read_text() == (built / "corpus" / "report.json").read_text()


def test_ray_writes_the_same(built: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    shutil.copytree(built / "raw", tmp_path / "raw", copy_function=shutil.copy2)
    result = build(config_of(tmp_path), "--executor.kind", "ray", "--executor.tasks", "2")
    assert result.returncode == 0, result.stderr
    assert outputs(tmp_path / "corpus") == outputs(built / "corpus")


# What a cluster does with a submitted script, at once and on this machine: the tasks of its array one after the other.
SBATCH = """#!/bin/bash
script="${@: -1}"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for argument in "$@"; do case "$argument" in --export=ALL,*) export "${argument#--export=ALL,}";; esac; done
for task in $(seq 0 "${last:-0}"); do
    SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=here bash "$script" > /dev/null 2>> "$SLURM_LOG" || exit 1
done
echo Submitted batch job $$
"""
SRUN = '#!/bin/bash\nwhile [[ "$1" == -* ]]; do if [ "$1" = -n ]; then shift; fi; shift; done\nexec "$@"\n'


def test_slurm_tasks_write_the_same(built: Path, tmp_path: Path) -> None:
    """With stand-ins for Slurm's commands; datatrove's scripts and our pickled pipelines are real."""
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "scontrol": "#!/bin/bash\necho here\n"}.items():
        (stand_ins / name).write_text(text)
        (stand_ins / name).chmod(0o755)
    shutil.copytree(built / "raw", tmp_path / "raw", copy_function=shutil.copy2)
    executor = {"kind": "slurm", "tasks": 3, "slurm": {"partition": "cpu", "tasks_per_job": 2}}
    path = f"{stand_ins}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [sys.executable, "tools/build_corpus.py", "--config", str(config_of(tmp_path, executor=executor))]
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "SLURM_LOG": str(tmp_path / "log")}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=280)
    assert result.returncode == 0, result.stderr + (tmp_path / "log").read_text()[-3000:]
    assert outputs(tmp_path / "corpus") == outputs(built / "corpus")


def test_a_second_run_does_nothing(built: Path) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (built / "corpus").rglob("*") if path.is_file()}

    before = times()
    result = build(built / "corpus.yaml")
    assert result.returncode == 0, result.stderr
    assert times() == before


def test_a_changed_setting_repeats_what_depends_on_it(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "all", copy_function=shutil.copy2)
    corpus = tmp_path / "all" / "corpus"
    config = config_of(tmp_path / "all")
    assert build(config).returncode == 0
    cleaned = {path: path.stat().st_mtime_ns for path in (corpus / "1_cleaned").rglob("*")}
    result = build(config, "--personal_data.reserved_addresses", "true")
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in (corpus / "1_cleaned").rglob("*")} == cleaned
    found = {document.get("record_id", document["id"]): document for document in documents(corpus)}
    assert "user@example.com" not in found["en3"]["text"]


def test_another_distance_needs_no_new_signatures(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "all", copy_function=shutil.copy2)
    config, cleaned = config_of(tmp_path / "all"), tmp_path / "all" / "corpus" / "1_cleaned"
    assert build(config).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in cleaned.rglob("*")}
    result = build(config, "--near_duplicates.distance", "2")
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in cleaned.rglob("*")} == before


def test_a_killed_run_goes_on(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built / "raw", tmp_path / "raw", copy_function=shutil.copy2)
    config = config_of(tmp_path)
    command = [sys.executable, "tools/build_corpus.py", "--config", str(config), "--executor.workers", "1"]
    for stage, files in (("1_cleaned", 1), ("1_cleaned", 3), ("documents", 1), ("documents", 4)):
        run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
        while run.poll() is None and len(list((tmp_path / "corpus" / stage).rglob("*.ledger.json"))) < files:
            time.sleep(0.002)
        assert run.poll() is None, "too late to kill it"
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        assert not (tmp_path / "corpus" / "report.html").exists()
    assert build(config).returncode == 0
    assert outputs(tmp_path / "corpus") == outputs(built / "corpus")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--executor.workers", "0"], "executor.workers is 0"),
        (["--executor.kind", "slurm"], "executor.slurm.partition is empty"),
        (["--sources", "{}"], "sources is empty"),
        (["--sources.en_text.path", "/nowhere/*.jsonl"], "no file matches /nowhere/*.jsonl"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    result = build(config_of(tmp_path), *options)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "corpus" / "documents").exists()
