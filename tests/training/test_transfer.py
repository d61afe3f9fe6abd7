"""Transfer to a second language in one config: an English run, its tokenizer extended, both languages from there on."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import yaml

from mindllm_engine.command_line import parse_arguments
from mindllm_engine.corpus.open_tokenizer import first_changed_id, open_tokenizer
from mindllm_engine.errors import MindLLMError
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.loop import pretrain
from tests.training.tiny_run import PRETRAIN, ROOT

BASE_VOCAB, VOCAB = 400, 432


def _write_texts(folder: Path, lang: str, words: list[str], between: str) -> None:
    """Sentences that follow a rule: each word is followed by one of two."""
    rng = np.random.default_rng(len(words))
    lines = []
    for _ in range(160):
        word, text = int(rng.integers(len(words))), []
        for _ in range(60):
            text.append(words[word])
            word = (word * 3 + int(rng.integers(2))) % len(words)
        lines.append(orjson.dumps({"text": between.join(text)}))
    (folder / f"{lang}.jsonl").write_bytes(b"\n".join(lines))


def _config(folder: Path, name: str, langs: tuple[str, ...], vocab_size: int, **corpus: Any) -> dict[str, Any]:
    source = {lang: {"path": str(folder / f"{lang}.jsonl"), "lang": lang, "category": "webtext"} for lang in langs}
    return {
        "run": {"dir": str(folder / name)},
        "corpus": {
            "dir": str(folder / f"{name}_data"), "sources": source, "tokenizer_vocab_size": vocab_size,
            "tokenizer_train_bytes": 200_000, "holdout": 0.1, **corpus,
        },
        "model": {"gpt_neo": {
            "vocab_size": vocab_size, "hidden_size": 64, "ffn_size": 128, "n_layers": 2, "n_heads": 2,
            "max_seq_len": 64, "window_size": 16,
        }},
        "data": {"seq_len": 64, "blocks": [{"max_epochs": 100}]},
        "optim": {"lr": 3e-3, "schedule": {"kind": "linear", "warmup_steps": 5}},
        "train": {
            "steps": 60, "global_batch_size": 8, "micro_batch_size": 8, "precision": "fp32", "tensorboard": False,
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts of both languages and an English run in `mono`."""
    folder = tmp_path_factory.mktemp("transfer")
    english = "the river and a stone were often under that old bridge when water came with people from small towns"
    _write_texts(folder, "en", english.split(), " ")
    chinese = "春天 河水 石桥 老人 山路 月光 白云 小镇 书本 学校 船夫 清晨 竹林 灯火 故事 远方 雨声 茶馆"
    _write_texts(folder, "zh", chinese.split(), "，")
    _train(_config(folder, "mono", ("en",), BASE_VOCAB))
    return folder


def _train(config: dict[str, Any]) -> None:
    path = Path(config["run"]["dir"] + ".yaml")
    path.write_text(yaml.safe_dump(config, allow_unicode=True))
    done = subprocess.run(
        [sys.executable, PRETRAIN, "--config", path], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


def _transfer(folder: Path, name: str, **corpus: Any) -> dict[str, Any]:
    config = _config(folder, name, ("en", "zh"), VOCAB, **{"tokenizer_base": str(folder / "mono")} | corpus)
    config["run"]["init_from"] = str(folder / "mono")
    return config


def _refused(config: dict[str, Any]) -> str:
    path = Path(config["run"]["dir"] + ".refused.yaml")
    path.write_text(yaml.safe_dump(config, allow_unicode=True))
    with pytest.raises(MindLLMError) as caught:
        pretrain(parse_arguments(RunConfig, "", ["--config", str(path)]))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _heldout(run: Path) -> list[dict[str, Any]]:
    records = map(orjson.loads, (run / "metrics.jsonl").read_bytes().splitlines())
    return [record for record in records if "heldout_bpb" in record]


def test_one_config_extends_the_tokenizer_and_trains_on(english: Path) -> None:
    _train(_transfer(english, "both", tokenizer_special_tokens=True))
    base, extended = (open_tokenizer(english / run / "tokenizer.model") for run in ("mono", "both"))
    assert (base.vocab_size, extended.vocab_size) == (BASE_VOCAB, VOCAB)
    assert first_changed_id(extended, base) is None
    assert first_changed_id(base, extended) == BASE_VOCAB
    sentence = "the old bridge, and (as ever) a stone"
    assert extended.encode(sentence) == base.encode(sentence)
    assert len(extended.encode("春天，石桥")) < len(base.encode("春天，石桥"))
    assert extended.special_id("<|user|>") >= BASE_VOCAB

    before, first, last = _heldout(english / "mono")[-1], *_heldout(english / "both")
    # The same documents, ids and weights: only the wider softmax costs, which new rows at the mean bound.
    assert before["heldout_bpb/en"] <= first["heldout_bpb/en"] < before["heldout_bpb/en"] + 0.3
    assert last["heldout_bpb/en"] < before["heldout_bpb/en"] + 0.05
    assert last["heldout_bpb/zh"] < 0.5 * first["heldout_bpb/zh"]


def test_what_does_not_fit_together_is_refused(english: Path) -> None:
    other = english / "other"
    _train(_config(english, "other", ("en", "zh"), BASE_VOCAB) | {"train": {
        "steps": 1, "global_batch_size": 1, "micro_batch_size": 1, "tensorboard": False,
    }})  # fmt: skip
    message = _refused(_transfer(english, "a", tokenizer_base=str(other)))
    assert "run.init_from" in message
    assert "another tokenizer" in message

    # By hand, without tokenizer_base: a tokenizer of its own scrambles the ids.
    own = _transfer(english, "b", tokenizer_base=None)
    assert "another tokenizer" in _refused(own)

    assert "the tokenizer cannot be read" in _refused(_transfer(english, "c", tokenizer_base=str(english / "none")))
    too_small = _transfer(english, "d", tokenizer_vocab_size=BASE_VOCAB)
    assert "leaves no room for new pieces" in _refused(too_small)
    no_chinese = _transfer(english, "e")
    del no_chinese["corpus"]["sources"]["zh"]
    assert "no source has lang: zh" in _refused(no_chinese)

    # A folder that holds a tokenizer which extends another base.
    stale = _transfer(english, "f")
    stale["corpus"] |= {"dir": str(english / "other_data"), "tokenizer_vocab_size": BASE_VOCAB}
    assert "does not extend corpus.tokenizer_base" in _refused(stale)
