"""A run through the adapter, and exported through lm-eval's own `hf` backend: the same log-likelihoods."""

from pathlib import Path

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from mindllm_engine.distributed.process_group import World
from mindllm_engine.evaluation.export.export_run import export_run
from mindllm_engine.evaluation.lm_eval_adapter import EngineLM
from mindllm_engine.training.weights import load_model_for_inference
from tests.evaluation.exported_runs import make_run, train_byte_level, train_sentencepiece
from tests.evaluation.harness_models import requests

QUESTIONS = [
    ("How much is {} plus 2?\nA. 3\nB. 14\nAnswer:", (" A", " B", " 14")),
    ("{} 加 2 等于多少？\nA. 3\nB. 14\n答案：", ("A", " B", "十四")),
]


@pytest.mark.parametrize(
    ("network", "train", "add_bos_token"),
    [("mindllm", train_sentencepiece, True), ("gpt_neo", train_byte_level, False)],
    ids=["mindllm", "gpt_neo"],
)
def test_an_exported_run_scores_as_the_run(tmp_path: Path, network: str, train, add_bos_token: bool) -> None:
    """With the tokenizers' own habits: SentencePiece's begins texts with <s>, that of GPT-2's kind does not."""
    make_run(tmp_path / "run", network, train(tmp_path), padding_rows=7)
    export_run(tmp_path / "run", tmp_path / "exported", torch.float32, lambda written: None)
    model, tokenizer = load_model_for_inference(str(tmp_path / "run"))
    ours = EngineLM(model, tokenizer, World(0, 1, 0, model.embedding.device), add_bos_token=add_bos_token)
    theirs = HFLM(pretrained=str(tmp_path / "exported"), device="cpu", dtype="float32", trust_remote_code=True)
    pairs = [(text.format(n), answer) for n in range(9) for text, answers in QUESTIONS for answer in answers]
    asked = requests("loglikelihood", [*pairs, ("", "十四"), ("How much is ", "12 ")])
    for mine, other in zip(ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True), strict=True):
        assert mine[0] == pytest.approx(other[0], abs=1e-4)
        assert mine[1] == other[1]
