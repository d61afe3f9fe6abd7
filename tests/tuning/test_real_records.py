"""Real instructions in Chinese: a tiny network tuned on them, with a tokenizer trained on the spot, predicts held-out
answers better than before; and every record is accounted for."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from mindllm_engine.corpus.open_tokenizer import open_tokenizer
from mindllm_engine.corpus.tokenizer import train_tokenizer
from mindllm_engine.data.token_files import TokenFile
from tests.real_data import REAL_DATA
from tests.training.tiny_run import records as metrics
from tests.tuning.tiny_tuning import base_run, tune_here, write_records, write_tuning

RECORDS = 3000


@pytest.fixture(scope="module")
def alpaca_zh() -> list[dict[str, str]]:
    path = REAL_DATA / "instruct" / "alpaca_zh.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent; MINDLLM_DATA names the folder of real text")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(RECORDS), strict=False)]


def test_held_out_answers_become_likelier_and_no_record_is_lost(
    alpaca_zh: list[dict[str, str]], tmp_path: Path
) -> None:
    texts = [record["instruction"] + record["input"] + record["output"] for record in alpaca_zh]
    train_tokenizer(texts, 2500, tmp_path / "zh.model", special_tokens=True)
    base = base_run(tmp_path / "base", steps=2, tokenizer=tmp_path / "zh.model", seq_len=128)
    path = write_records(tmp_path / "alpaca_zh.jsonl", list(alpaca_zh))
    config = write_tuning(
        tmp_path, base, {"alpaca_zh": {"path": str(path), "lang": "zh"}},
        data__seq_len=128, tuning__heldout=0.02, optim__lr=3e-3, optim__schedule={"kind": "linear", "warmup_steps": 4},
        train__steps=30, train__global_batch_size=16, train__micro_batch_size=8,
    )  # fmt: skip
    tune_here(config)
    heldout = [record["heldout_loss"] for record in metrics(tmp_path / "run") if "heldout_loss" in record]
    assert heldout[-1] < heldout[0] - 0.3
    folder = next((tmp_path / "tokens").glob("alpaca_zh-*"))
    report = json.loads((folder / "report.json").read_text())
    counted = sum(report[part]["records"] for part in ("train", "heldout"))
    assert counted + sum(sum(report[kind].values()) for kind in ("bad", "too_long")) == RECORDS
    wanted = {record["output"] for record in alpaca_zh}
    tokenizer = open_tokenizer(base / "tokenizer.model")
    file = TokenFile(folder / "heldout")
    assert file.mask is not None
    start = 0
    for number, length in enumerate(file.lengths.tolist()):
        learnt = np.flatnonzero(file.mask[start : start + length])
        start += length
        assert tokenizer.decode(file.document(number)[learnt[:-2]]) in wanted
