"""Answers of run folders, servers and files."""

import json
import shutil
from pathlib import Path

import pytest

from mindllm_engine.chat_endpoint import AnswerCache, EndpointConfig, EndpointFailure
from mindllm_engine.corpus.chat_template import Message, load_template
from mindllm_engine.corpus.tokenizer import train_tokenizer
from mindllm_engine.errors import ConfigError, DataError, MindLLMError
from mindllm_engine.evaluation.arena.answers import AnswerOptions, Contestant, answers_of, answers_of_run
from mindllm_engine.evaluation.arena.prompts import Prompt
from mindllm_engine.evaluation.generation import generate
from mindllm_engine.training.weights import load_model_for_inference
from tests.chat_server import ChatServer, Reply
from tests.evaluation.arena.tuned_run import TEXTS, tuned_run

PROMPTS = [
    Prompt("p1", (Message("user", "合同第7条？"),)),
    Prompt("p2", (Message("system", "be brief"), Message("user", "The debt of 12 yuan?"))),
    Prompt("p3", (Message("user", "合同第7条？"), Message("assistant", "欠款"), Message("user", "then? " * 6))),
    Prompt("p4", (Message("user", "long " * 200),)),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned_run(tmp_path_factory.mktemp("tuned"))


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batched_answers_are_those_of_each_prompt_alone(run: Path, tmp_path: Path, temperature: float) -> None:
    options = AnswerOptions(temperature=temperature, top_p=0.9, max_new_tokens=60, seed=4, batch_size=3)
    answers = answers_of_run(run, PROMPTS, options, AnswerCache(tmp_path / "a"), quiet)
    assert isinstance(answers[3], EndpointFailure)
    assert "no room in 128" in answers[3].reason
    backwards = AnswerOptions(**{**vars(options), "batch_size": 1})
    again = answers_of_run(run, PROMPTS[::-1], backwards, AnswerCache(tmp_path / "b"), quiet)
    assert again[::-1] == answers
    if temperature == 0:
        model, tokenizer = load_model_for_inference(str(run))
        template = load_template(run, tokenizer)
        for prompt, answer in zip(PROMPTS[:3], answers, strict=False):
            expected = []
            for token in generate(model, template.prompt(prompt.messages), 60, 0.0, vocab_size=tokenizer.vocab_size):
                if token in template.stop_ids:
                    break
                expected.append(token)
            assert answer == tokenizer.decode(expected)
    else:
        other = AnswerOptions(**{**vars(options), "seed": 5})
        assert answers_of_run(run, PROMPTS, other, AnswerCache(tmp_path / "a"), quiet)[:3] != answers[:3]


def test_a_run_with_another_tokenizer_answers_nothing(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    train_tokenizer(TEXTS[100:], 340, tmp_path / "other.model", special_tokens=True)
    shutil.copy(tmp_path / "other.model", tmp_path / "run" / "tokenizer.model")
    with pytest.raises(DataError, match=r"tokenizer\.model: is not the tokenizer of "):
        answers_of_run(tmp_path / "run", PROMPTS, AnswerOptions(), AnswerCache(tmp_path / "a"), quiet)


def test_answers_are_kept_and_not_made_again(run: Path, tmp_path: Path) -> None:
    """A cache that has been written to by hand is believed, so nothing was generated."""
    options, path = AnswerOptions(max_new_tokens=5), tmp_path / "cache"
    first = answers_of_run(run, PROMPTS[:2], options, AnswerCache(path), quiet)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["answer"] for line in lines] == first
    path.write_text("".join(json.dumps(line | {"answer": "kept"}, separators=(",", ":")) + "\n" for line in lines))
    assert answers_of_run(run, PROMPTS[:2], options, AnswerCache(path), quiet) == ["kept", "kept"]
    longer = AnswerOptions(max_new_tokens=6)
    assert "kept" not in answers_of_run(run, PROMPTS[:2], longer, AnswerCache(path), quiet)


def test_a_run_without_template_or_network_says_so(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(run)
    with pytest.raises(MindLLMError, match="no checkpoint"):
        answers_of(Contestant(run=str(tmp_path)), PROMPTS, AnswerOptions(), tmp_path / "cache", quiet)
    bare = tmp_path / "bare"
    bare.mkdir()
    for child in run.iterdir():
        if child.name != "chat_template.json":
            (bare / child.name).symlink_to(child)
    with pytest.raises(DataError, match="no chat template"):
        answers_of(Contestant(run=str(bare)), PROMPTS, AnswerOptions(), tmp_path / "cache", quiet)


def test_answers_of_a_server(tmp_path: Path) -> None:
    def reply(request: dict[str, object]) -> str | Reply:
        messages = request["messages"]
        assert isinstance(messages, list)
        return Reply(400, b"too long") if len(messages[-1]["content"]) > 500 else f"{len(messages)}"

    with ChatServer(reply) as server:
        contestant = Contestant(endpoint=EndpointConfig(server.url, "m", cache=str(tmp_path / "cache.jsonl")))
        answers = answers_of(contestant, PROMPTS, AnswerOptions(temperature=0.3), tmp_path / "unused", quiet)
    assert answers[:3] == ["1", "2", "3"]
    assert isinstance(answers[3], EndpointFailure)
    assert {request["temperature"] for request in server.requests} == {0.3}


def test_answers_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    lines = [{"id": f"p{number}", "answer": f"answer {number}"} for number in (4, 3, 2)]
    lines += [{"id": "p1", "answer": None}, {"id": "p9", "answer": ""}]
    path.write_text("\n".join(map(json.dumps, lines)))
    answers = answers_of(Contestant(answers=str(path)), PROMPTS, AnswerOptions(), tmp_path / "unused", quiet)
    assert answers[1:] == ["answer 2", "answer 3", "answer 4"]
    assert isinstance(answers[0], EndpointFailure)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"id": "p1", "answer": "a"}', "lacks answers to 3 of 4 prompts, the first is p2"),
        ("nonsense", r"a\.jsonl:1: each line must be an object"),
        ('{"id": "p1"}', "each line must be an object with id and answer"),
        ('{"id": "p1", "answer": 3}', "answer must be a text"),
    ],
)
def test_a_bad_file_of_answers(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=reason):
        answers_of(Contestant(answers=str(tmp_path / "a.jsonl")), PROMPTS, AnswerOptions(), tmp_path / "unused", quiet)


def test_a_contestant_is_one_thing() -> None:
    for contestant in (Contestant(), Contestant(run="a", answers="b")):
        with pytest.raises(ConfigError, match=r"contestants\.x: give one of run, endpoint and answers"):
            contestant.validate("x")


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.5), ("max_new_tokens", 0), ("batch_size", 0)],
)
def test_options_out_of_range(key: str, value: float) -> None:
    options = AnswerOptions()
    setattr(options, key, value)
    with pytest.raises(ConfigError, match=key):
        options.validate()
