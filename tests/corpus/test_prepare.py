"""Preparing a corpus: once, whoever asks; and what a config may not say."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mindllm_engine.corpus import prepare, sample
from mindllm_engine.corpus.byte_level_tokenizer import ByteLevelTokenizer
from mindllm_engine.corpus.open_tokenizer import first_changed_id
from mindllm_engine.corpus.prepare import CorpusConfig, SourceText, expand_path, prepare_corpus
from mindllm_engine.corpus.tokenizer import Tokenizer
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import ConfigError, DataError
from tests.corpus.test_extend_tokenizer import train_byte_level

Write = Callable[[Path, list[str]], Path]
MakeDocuments = Callable[[int, int], list[str]]


@pytest.fixture
def config(
    tmp_path: Path, write_records: Write, documents: MakeDocuments, monkeypatch: pytest.MonkeyPatch
) -> CorpusConfig:
    monkeypatch.setenv("MINDLLM_DATA", str(tmp_path / "raw"))
    for name, seed in (("zh_book", 1), ("en_web", 2), ("en_code", 3)):
        write_records(tmp_path / "raw" / f"{name}.jsonl", documents(200, seed))
    sources = {
        "zh_book": SourceText("${MINDLLM_DATA}/zh_*.jsonl", "zh", "book"),
        "en_web": SourceText("$MINDLLM_DATA/en_web.jsonl", "en", "web"),
        "en_code": SourceText(str(tmp_path / "raw" / "en_code.jsonl"), "en", "code"),
    }
    return CorpusConfig(str(tmp_path / "corpus"), sources, 500, 100_000, 0.1)


def _state(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_corpus_is_prepared_once(config: CorpusConfig, capfd: pytest.CaptureFixture[str]) -> None:
    prepared = prepare_corpus(config)
    assert prepared.tokenizer == Path(config.dir) / "tokenizer.model"
    assert list(prepared.sources) == list(prepared.heldout) == ["zh_book", "en_web", "en_code"]
    tokenizer = Tokenizer(prepared.tokenizer)
    assert tokenizer.vocab_size == 500
    for name, prefix in prepared.sources.items():
        manifest = TokenFile(prefix).manifest
        assert (manifest.name, manifest.lang, manifest.category) == (name, name[:2], name[3:])
        assert manifest.tokenizer_hash == tokenizer.hash
        assert manifest.documents + TokenFile(prepared.heldout[name]).documents == 200
    assert "training a tokenizer of 500 ids" in capfd.readouterr().err

    before = _state(Path(config.dir))
    assert prepare_corpus(config) == prepared
    assert _state(Path(config.dir)) == before
    assert capfd.readouterr().err == ""


def test_a_new_source_is_added_to_a_prepared_corpus(config: CorpusConfig) -> None:
    late = config.sources.pop("en_code")
    prepare_corpus(config)
    before = _state(Path(config.dir))
    config.sources["en_code"] = late
    assert "en_code" in prepare_corpus(config).sources
    assert {path: time for path, time in _state(Path(config.dir)).items() if path in before} == before


PROCESS = """
import sys
from mindllm_engine.corpus.prepare import CorpusConfig, SourceText, prepare_corpus
if __name__ == "__main__":
    source = SourceText("${MINDLLM_DATA}/*.jsonl", "en", "web")
    print(prepare_corpus(CorpusConfig(sys.argv[1], {"all": source}, 500, 100_000, 0.1)))
"""


def test_several_processes_at_once_work_once(config: CorpusConfig, tmp_path: Path) -> None:
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), config.dir], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len({out for out, _ in outputs}) == 1
    assert sum("training a tokenizer" in err for _, err in outputs) == 1


def _sample_config(folder: Path, seed: int) -> CorpusConfig:
    text = folder / "text"
    sources = {
        "en_story": SourceText(str(text / "en_story.jsonl"), "en", "story"),
        "zh_qa": SourceText(str(text / "zh_qa.jsonl"), "zh", "qa"),
    }
    return CorpusConfig(str(folder), sources, 900, 100_000, 0.1, sample_seed=seed)


def test_a_sample_is_written_where_there_is_no_text(config: CorpusConfig, tmp_path: Path) -> None:
    with_sample = _sample_config(tmp_path / "sample", seed=7)
    prepared = prepare_corpus(with_sample)
    before = _state(tmp_path / "sample")
    assert prepare_corpus(with_sample) == prepared
    assert _state(tmp_path / "sample") == before
    assert TokenFile(prepared.sources["zh_qa"]).documents > 100

    other = prepare_corpus(_sample_config(tmp_path / "other", seed=8))
    assert (
        Path(other.sources["en_story"] + ".bin").read_bytes()
        != Path(prepared.sources["en_story"] + ".bin").read_bytes()
    )

    config.sample_seed = 9  # there is text already
    prepare_corpus(config)
    assert len(list((tmp_path / "raw").iterdir())) == 3


def test_a_sample_that_was_not_finished_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(folder: Path, seed: int) -> None:
        folder.mkdir(parents=True)
        (folder / "en_story.jsonl").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "write_sample_corpus", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare_corpus(_sample_config(tmp_path / "sample", seed=7))
    monkeypatch.undo()
    assert list(prepare_corpus(_sample_config(tmp_path / "sample", seed=7)).sources) == ["en_story", "zh_qa"]


def test_impossible_configs_are_refused(config: CorpusConfig, tmp_path: Path) -> None:
    def refused(**changed: object) -> str:
        values = {name: getattr(config, name) for name in vars(config)} | changed
        with pytest.raises((ConfigError, DataError)) as caught:
            prepare_corpus(CorpusConfig(**values))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "corpus.sources is empty" in refused(sources={})
    assert "corpus.holdout is 1.5" in refused(holdout=1.5)
    assert "corpus.tokenizer_vocab_size is 0" in refused(tokenizer_vocab_size=0)
    assert "corpus.tokenizer_train_bytes is 0" in refused(tokenizer_train_bytes=0)
    assert "no file matches" in refused(sources={"a": SourceText("/none/*.jsonl", "en", "web")})
    assert "NO_SUCH_VARIABLE is not set" in refused(sources={"a": SourceText("${NO_SUCH_VARIABLE}/a", "en", "web")})
    two_folders = {name: SourceText(f"/none/{name}/a.jsonl", "en", "web") for name in "ab"}
    assert "put them in one folder" in refused(sources=two_folders, sample_seed=1)
    prepare_corpus(config)
    assert "has 500 ids, but corpus.tokenizer_vocab_size is 600" in refused(tokenizer_vocab_size=600)
    assert "was made with holdout 0.1, but 0.2 is asked for" in refused(holdout=0.2)
    assert "was trained without corpus.tokenizer_special_tokens" in refused(tokenizer_special_tokens=True)


def test_a_tokenizer_with_special_tokens(config: CorpusConfig) -> None:
    prepared = prepare_corpus(replace(config, tokenizer_special_tokens=True))
    tokenizer = Tokenizer(prepared.tokenizer)
    assert len(tokenizer.encode("<|email|>")) == 1
    assert tokenizer.special_id("<|user|>") not in tokenizer.encode("<|user|>")


def test_a_byte_level_tokenizer_is_extended(config: CorpusConfig, tmp_path: Path) -> None:
    """GPT-2's kind, as a run folder of an imported GPT-Neo has it: a tokenizer.json under the name tokenizer.model."""
    (tmp_path / "run").mkdir()
    english = ["the river and a stone were often under that old bridge when the water came with people"] * 20
    base = ByteLevelTokenizer(train_byte_level(tmp_path / "run" / "tokenizer.model", english, vocab_size=300))
    room = replace(config, tokenizer_base=str(tmp_path / "run"), tokenizer_special_tokens=True)
    with pytest.raises(ConfigError, match="leaves no room for new pieces"):
        prepare_corpus(replace(room, tokenizer_vocab_size=base.vocab_size + 9))
    size = base.vocab_size + 9 + 60
    prepared = prepare_corpus(replace(room, tokenizer_vocab_size=size))
    extended = ByteLevelTokenizer(prepared.tokenizer)
    assert extended.vocab_size == size
    assert first_changed_id(extended, base) is None
    assert extended.encode("the old bridge") == base.encode("the old bridge")
    assert extended.special_id("<|user|>") >= base.vocab_size
    manifest = TokenFile(prepared.sources["zh_book"]).manifest
    assert manifest.tokenizer_hash == extended.hash
    assert prepare_corpus(replace(room, tokenizer_vocab_size=size)) == prepared


def test_expand_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.delenv("MINDLLM_DATA", raising=False)
    assert expand_path("~/a") == "/somewhere/a"
    assert expand_path("${MINDLLM_DATA}/a") == expand_path("$MINDLLM_DATA/a") == f"{prepare.DEFAULT_DATA_DIR}/a"
    monkeypatch.setenv("MINDLLM_DATA", "/data")
    assert expand_path("${MINDLLM_DATA}/a") == "/data/a"
