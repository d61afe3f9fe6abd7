"""The adapter against lm-eval's own `hf` backend on the same exported weights."""

import gzip
import itertools
import json

import numpy as np
import pytest
import torch

from mindllm_engine.distributed.process_group import World
from mindllm_engine.errors import DataError
from mindllm_engine.evaluation.lm_eval_adapter import EngineLM
from tests.evaluation.harness_models import (
    REAL_TEXT,
    TEXTS,
    byte_level_tokenizer,
    gpt_neo,
    hf_backend,
    needs_real_text,
    requests,
)

ALONE = World(0, 1, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(network, tokenizer, folder) for both backends."""
    folder = tmp_path_factory.mktemp("exported")
    tokenizer = byte_level_tokenizer(folder, TEXTS)
    return gpt_neo(tokenizer.vocab_size, max_seq_len=128, window_size=16), tokenizer, folder


def read_lines(name: str) -> list[dict]:
    with gzip.open(REAL_TEXT / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def few_shot(name: str, answer: str, count: int, shots: int) -> list[tuple[str, str]]:
    """(context, continuation) of every candidate of `count` questions, spread over all subjects."""
    by_subject: dict[str, list[dict]] = {}
    for line in read_lines(f"{name}_dev"):
        by_subject.setdefault(line["subject"], []).append(line)
    lines = read_lines(f"{name}_test")

    def show(line: dict) -> str:
        choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", line["choices"], strict=True))
        return f"{line['question']}\n{choices}\n{answer}"

    pairs = []
    for line in lines[:: len(lines) // count][:count]:
        examples = [f"{show(each)} {each['answer']}\n\n" for each in by_subject[line["subject"]][:shots]]
        pairs += [("".join(examples) + show(line), f" {letter}") for letter in "ABCD"]
    return pairs


@needs_real_text
@pytest.mark.parametrize(
    ("name", "answer", "max_seq_len"), [("mmlu", "Answer:", 512), ("cmmlu", "答案：", 200)], ids=["mmlu", "cmmlu"]
)
def test_same_log_likelihoods_on_real_questions(tmp_path, name: str, answer: str, max_seq_len: int) -> None:
    """250 questions each; the longest do not fit the network and are cut from the left."""
    lines = list(itertools.islice(read_lines(f"{name}_test"), 2000))
    tokenizer = byte_level_tokenizer(tmp_path, [line["question"] for line in lines], vocab_size=3000)
    model = gpt_neo(tokenizer.vocab_size, max_seq_len=max_seq_len)
    asked = requests("loglikelihood", few_shot(name, answer, count=250, shots=2))
    engine = EngineLM(model, tokenizer, ALONE)
    ours = engine.loglikelihood(asked)
    theirs = hf_backend(tmp_path, model, batch_size=8, add_bos_token=True).loglikelihood(asked, disable_tqdm=True)
    assert len(ours) == len(theirs) == 1000
    difference = [abs(a - b) for (a, _), (b, _) in zip(ours, theirs, strict=True)]
    assert max(difference) < 1e-4
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    best = [np.array(each).reshape(-1, 4, 2)[:, :, 0].argmax(1).tolist() for each in (ours, theirs)]
    assert best[0] == best[1]
    assert len(set(best[0])) > 1  # the network's answers differ
    assert engine.notes["contexts cut from the left"] > 0


PAIRS = [
    ("The cat sat", " on 12 mats."),
    ("The cat sat", " on"),
    ("The cat sat ", "on"),  # the space goes to the answer
    ("The cat sat \n ", "on the mat"),
    ("", "Nobody knows."),
    ("", "猫"),
    ("猫坐在", "12 个垫子上。"),
    ("答案：", "A"),
    ("The cat sat on 12 mats." * 60, " Nobody"),  # too long
    ("A", " " + "long answers " * 10),
]


@pytest.mark.parametrize("add_bos_token", [True, False])
def test_hard_pairs_agree(pair, add_bos_token: bool) -> None:
    model, tokenizer, folder = pair
    asked = requests("loglikelihood", PAIRS)
    engine = EngineLM(model, tokenizer, ALONE, add_bos_token=add_bos_token)
    theirs = hf_backend(folder, model, batch_size=1, add_bos_token=add_bos_token)
    for ours, other in zip(engine.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True), strict=True):
        assert ours[0] == pytest.approx(other[0], abs=1e-4)
        assert ours[1] == other[1]
    assert engine.notes == {"contexts cut from the left": 1}
    for (context, continuation), (ids, answer) in zip(
        PAIRS, [(pair.context, pair.continuation) for pair in engine._encode_pairs(asked)], strict=True
    ):
        if context:
            assert (ids, answer) == theirs._encode_pair(context, continuation)


def test_rolling_log_likelihoods_agree(pair) -> None:
    model, tokenizer, folder = pair
    asked = requests("loglikelihood_rolling", [(text,) for text in [*TEXTS, TEXTS[0] * 40, "猫"]])
    theirs = hf_backend(folder, model, batch_size=2, add_bos_token=False)
    ours = EngineLM(model, tokenizer, ALONE, add_bos_token=False).loglikelihood_rolling(asked)
    assert ours == pytest.approx(theirs.loglikelihood_rolling(asked, disable_tqdm=True), abs=1e-3)


@pytest.mark.parametrize("until", [["\n\n"], ["。", " cat"], [], ["e"], "t"])
def test_greedy_texts_are_the_same(pair, until) -> None:
    model, tokenizer, folder = pair
    contexts = ["The cat", "The cat sat on", "猫", "Q: Why?\nA:", "The cat", "Why? " * 90]
    options = {"until": until, "max_gen_toks": 40}
    asked = requests("generate_until", [(context, options) for context in contexts])
    engine = EngineLM(model, tokenizer, ALONE, batch_size=4)
    theirs = hf_backend(folder, model, batch_size=1, add_bos_token=True)
    ours = engine.generate_until(asked)
    assert ours == theirs.generate_until(asked, disable_tqdm=True)
    assert any(ours)
    assert engine.notes["prompts cut from the left"] == 1


def test_sampled_texts_repeat_and_differ(pair) -> None:
    model, tokenizer, _ = pair
    options = {"until": ["\n\n"], "max_gen_toks": 20, "do_sample": True, "temperature": 1.0, "top_p": 0.95}
    asked = requests("generate_until", [("The cat", options)] * 3)
    first, again = (EngineLM(model, tokenizer, ALONE, batch_size=size).generate_until(asked) for size in (1, 3))
    assert first == again
    assert len(set(first)) == 3


def test_answers_do_not_depend_on_packs(pair) -> None:
    model, tokenizer, _ = pair
    asked = requests("loglikelihood", PAIRS)
    small, large = (EngineLM(model, tokenizer, ALONE, pack_tokens=size).loglikelihood(asked) for size in (16, 8192))
    for one, other in zip(small, large, strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-5)


def test_all_readings_come_from_one_pass(pair) -> None:
    model, tokenizer, _ = pair
    engine = EngineLM(model, tokenizer, ALONE, read_prompts=True)
    plain = EngineLM(model, tokenizer, ALONE)
    asked = requests("loglikelihood", PAIRS[:2] + PAIRS[6:7])
    assert engine.loglikelihood(asked) == [(pytest.approx(a, abs=1e-5), b) for a, b in plain.loglikelihood(asked)]
    # Prompt and answer together are the answer to an empty prompt, which is <s>.
    wholes = plain.loglikelihood(requests("loglikelihood", [("", "".join(each.args)) for each in asked]))
    for request, (whole, _) in zip(asked, wholes, strict=True):
        found = engine.candidate_scores[request.args]
        values = found.values()
        assert values["prompt and answer, sum"] == pytest.approx(whole, abs=1e-4)
        assert values["answer, mean a token"] * found.answer_tokens == pytest.approx(found.answer)
        assert values["answer, mean a byte"] * len(request.args[1].encode()) == pytest.approx(found.answer)
        assert found.whole_tokens == len(tokenizer.encode("".join(request.args)))


def test_an_answer_without_a_token_names_its_record(pair) -> None:
    model, tokenizer, _ = pair
    asked = requests("loglikelihood", [("The cat", " sat"), ("The cat", "")])
    with pytest.raises(DataError, match="task a_task, record 1: the answer '' adds no token"):
        EngineLM(model, tokenizer, ALONE).loglikelihood(asked)
    # This tokenizer has one token for the whole sentence, and three for its beginning.
    merged = requests("loglikelihood", [("猫坐在", "垫子上。")])
    with pytest.raises(DataError, match="record 0: the answer '垫子上。' adds no token"):
        EngineLM(model, tokenizer, ALONE).loglikelihood(merged)


def test_an_answer_longer_than_the_network_takes_is_refused(pair) -> None:
    model, tokenizer, _ = pair
    with pytest.raises(DataError, match=r"record 0: the answer has \d+ tokens; the network takes 128"):
        EngineLM(model, tokenizer, ALONE).loglikelihood(requests("loglikelihood", [("A", " B" * 300)]))


def test_a_tokenizer_of_another_network_is_refused(pair, tmp_path) -> None:
    other = byte_level_tokenizer(tmp_path, [*TEXTS, "completely other words for many more merges " * 3], vocab_size=900)
    assert other.vocab_size > pair[1].vocab_size
    with pytest.raises(DataError, match="it is not the tokenizer"):
        EngineLM(pair[0], other, ALONE)


def test_log_probabilities_that_are_no_numbers_are_no_score(pair) -> None:
    """As of weights so large that their products overflow."""
    _, tokenizer, _ = pair
    model = gpt_neo(tokenizer.vocab_size, max_seq_len=128, window_size=16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(1e30)
    with pytest.raises(DataError, match="task a_task, record 0: the network's log-probabilities are NaN"):
        EngineLM(model, tokenizer, ALONE).loglikelihood(requests("loglikelihood", [("Why?", " B")]))
