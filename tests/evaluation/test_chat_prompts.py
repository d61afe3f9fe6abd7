"""A tuned run asked in its chat template through the adapter, and exported through lm-eval's own `hf` backend."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from lm_eval.models.huggingface import HFLM

from mindllm_engine.corpus.chat_template import ChatTemplate, Message, TemplateConfig, load_template
from mindllm_engine.distributed.process_group import World
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.evaluation.evaluate import EvaluateArguments, evaluate
from mindllm_engine.evaluation.export.export_run import export_run
from mindllm_engine.evaluation.lm_eval_adapter import EngineLM
from mindllm_engine.training.weights import load_model_for_inference
from tests.evaluation.exported_runs import make_run, train_byte_level, train_sentencepiece
from tests.evaluation.harness_models import requests

ALONE = World(0, 1, 0, torch.device("cpu"))
PLAIN = TemplateConfig(system="{content}\n", user="Q: {content}\nA: ", assistant="{content}</s>")
CHATS = [
    [("user", "How much is 3 plus 2?")],
    [("system", "你是助手。"), ("user", "1 + 1 = ?"), ("assistant", "2"), ("user", "2 + 2 = ?")],
    [("user", " a "), ("assistant", "</s>b<|end|>"), ("user", "<|assistant|> c\n")],
]
ANSWERS = ("A", " B", "十四", "no one knows")


def as_history(chat: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in chat]


@pytest.fixture(
    scope="module",
    params=[("mindllm", train_sentencepiece, None), ("gpt_neo", train_byte_level, PLAIN)],
    ids=["symbols", "words"],
)
def both(request, tmp_path_factory) -> tuple[EngineLM, HFLM, Path]:
    """The adapter on a tuned run, and `hf` on what was exported of it."""
    network, train, config = request.param
    folder = tmp_path_factory.mktemp("chats")
    make_run(folder / "run", network, train(folder), template=config or TemplateConfig())
    export_run(folder / "run", folder / "exported", torch.float32, lambda written: None)
    model, tokenizer = load_model_for_inference(str(folder / "run"))
    ours = EngineLM(model, tokenizer, ALONE, template=load_template(folder / "run", tokenizer))
    theirs = HFLM(pretrained=str(folder / "exported"), device="cpu", dtype="float32", trust_remote_code=True)
    return ours, theirs, folder


def test_prompts_have_the_ids_that_the_run_was_tuned_on(both) -> None:
    ours, theirs, _ = both
    for chat in CHATS:
        history = as_history(chat)
        ids = ours.template.prompt([Message(role, content) for role, content in chat])
        assert ours.tok_encode(ours.apply_chat_template(history)) == ids
        rendered = theirs.tokenizer.apply_chat_template(history, add_generation_prompt=True, return_dict=True)
        assert rendered["input_ids"] == ids
        begun = [*history, {"role": "assistant", "content": "It is"}]
        text = ours.apply_chat_template(begun, add_generation_prompt=False)
        assert ours.tok_encode(text) == ids + ours.text_tokenizer.encode("It is")
        assert text.endswith("It is")


def test_a_message_that_spells_symbols_is_told_from_the_symbols(both) -> None:
    """Both chats read the same."""
    lm = EngineLM(both[0].model, both[0].text_tokenizer, ALONE, template=both[0].template)
    spelt = lm.template.spelled_prompt([Message("user", "a")]).removeprefix("<s>")
    after = lm.template.config.user.split("{content}")[1]
    inner = spelt.removeprefix(lm.template.config.user.split("{content}")[0])
    chats = [
        [("user", "a"), ("assistant", "b")],
        [("user", inner + "b" + lm.template.config.assistant.split("{content}")[1].removesuffix(after))],
    ]
    texts = [lm.apply_chat_template(as_history(chat)) for chat in [*chats, *chats]]
    assert texts[:2] == texts[2:]
    for text, chat in zip(texts, chats, strict=False):
        assert lm.tok_encode(text) == lm.template.prompt([Message(role, content) for role, content in chat])


def test_same_log_likelihoods_as_of_the_exported_run(both) -> None:
    ours, theirs, _ = both
    chats = [(as_history(chat), True) for chat in CHATS]
    chats += [
        ([*chat, {"role": "assistant", "content": begun}], False) for chat, _ in chats for begun in ("It is", "是 ")
    ]
    asked = [
        requests(
            "loglikelihood",
            [(lm.apply_chat_template(chat, whole), answer) for chat, whole in chats for answer in ANSWERS],
        )
        for lm in (ours, theirs)
    ]
    found = ours.loglikelihood(asked[0])
    for mine, other in zip(found, theirs.loglikelihood(asked[1], disable_tqdm=True), strict=True):
        assert mine[0] == pytest.approx(other[0], abs=1e-4)
        assert mine[1] == other[1]


def test_same_texts_as_of_the_exported_run(both) -> None:
    """To the template's own end of an answer."""
    ours, theirs, _ = both
    options = {"until": ["\n\n\n"], "max_gen_toks": 40, "do_sample": False}
    asked = [
        requests("generate_until", [(lm.apply_chat_template(as_history(chat)), dict(options)) for chat in CHATS])
        for lm in (ours, theirs)
    ]
    assert ours.generate_until(asked[0]) == theirs.generate_until(asked[1], disable_tqdm=True)


def test_an_answer_ends_at_the_templates_end(both, monkeypatch) -> None:
    """The network says what it always says, with the end of an answer as its third token."""
    lm = EngineLM(both[0].model, both[0].text_tokenizer, ALONE, template=both[0].template)
    word = lm.text_tokenizer.encode("word")[-1]
    for stop in lm.template.stop_ids:

        def say(model, prompts, room, vocab_size, is_done, *others, stop: int = stop) -> list[list[int]]:
            new: list[int] = []
            for token in (word, word, stop, word, word):
                new.append(token)
                if is_done(new):
                    break
            return [new for _ in prompts]

        monkeypatch.setattr("mindllm_engine.evaluation.lm_eval_adapter.generate_batch", say)
        text = lm.apply_chat_template(as_history(CHATS[0]))
        assert lm.generate_until(requests("generate_until", [(text, {"until": []})])) == [
            lm.text_tokenizer.decode([word, word])
        ]


def test_no_chat_without_a_template(both) -> None:
    lm = EngineLM(both[0].model, both[0].text_tokenizer, ALONE)
    with pytest.raises(ConfigError, match="without a chat template"):
        lm.apply_chat_template(as_history(CHATS[0]))


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    """Two questions with choices and one to be answered in words, in a task file of the user's own."""
    folder = tmp_path_factory.mktemp("suite")
    lines = [{"q": f"What is {n}?", "c": ["one", "two"], "a": n % 2} for n in range(5)]
    (folder / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, kind in (("mine_choice", "multiple_choice"), ("mine_words", "generate_until")):
        task = {
            "task": name,
            "custom_dataset": "PLACE",
            "output_type": kind,
            "test_split": "test",
            "fewshot_split": "test",
            "doc_to_text": "{{q}}\nAnswer:",
            "description": "Be brief.",
            "metric_list": [{"metric": "acc" if kind == "multiple_choice" else "exact_match"}],
        }
        task |= (
            {"doc_to_choice": "{{c}}", "doc_to_target": "{{a}}"}
            if kind == "multiple_choice"
            else {"doc_to_target": "{{c[a]}}", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8}}
        )
        text = yaml.safe_dump(task).replace("PLACE", "!function questions.load")
        (folder / f"{name}.yaml").write_text(text)
    (folder / "questions.py").write_text(
        "import json, pathlib, datasets\n"
        "def load(**_):\n"
        "    lines = (pathlib.Path(__file__).parent / 'q.jsonl').read_text().splitlines()\n"
        "    return {'test': datasets.Dataset.from_list([json.loads(line) for line in lines])}\n"
    )
    entries = [{"task": "mine_choice", "num_fewshot": 1}, {"task": "mine_words", "num_fewshot": 1}]
    (folder / "suite.yaml").write_text(yaml.safe_dump({"tasks": entries, "include_path": ["."]}))
    return folder / "suite.yaml"


@pytest.mark.parametrize("chat", ["turns", "message"])
def test_the_tool_asks_in_chats(both, suite, tmp_path, chat: str) -> None:
    template = both[0].template
    given = EvaluateArguments(str(both[2] / "run"), out=str(tmp_path), suite=str(suite), chat=chat)
    results = evaluate(given, ALONE)
    assert set(results["entries"]) == {"mine_choice", "mine_words"}
    said = {"turns": "examples as turns.", "message": "examples in the question's message."}[chat]
    assert f"Asked in the run's chat template, {said}" in (tmp_path / "results.md").read_text()
    for name in ("mine_choice", "mine_words"):
        with gzip.open(tmp_path / "tasks" / f"{name}.samples.jsonl.gz", "rt", encoding="utf-8") as file:
            prompt = json.loads(file.readline())["arguments"][0][0]
        begin, end = template.spelled_prompt([Message("system", "Be brief.")]).split("Be brief.")
        assert prompt.startswith(f"{begin}Be brief.")
        assert prompt.endswith(end.removeprefix(template.config.system.split("{content}")[1]))
        answers = prompt.count(template.config.assistant.split("{content}")[1].replace("</s>", "") or "Q: ")
        assert prompt.count("What is") == 2
        assert (
            answers
            == {("turns", True): 4, ("message", True): 2, ("turns", False): 2, ("message", False): 1}[
                chat, "<|end|>" in template.config.assistant
            ]
        )


def test_a_run_without_a_template_is_refused(both, suite, tmp_path) -> None:
    shutil.copytree(both[2] / "run", tmp_path / "run")
    (tmp_path / "run" / "chat_template.json").unlink()
    with pytest.raises(DataError, match=r"chat_template.json: no chat template .*; tune the network"):
        evaluate(
            EvaluateArguments(str(tmp_path / "run"), out=str(tmp_path / "out"), suite=str(suite), chat="turns"), ALONE
        )


def test_another_template_asks_anew(both, suite, tmp_path) -> None:
    shutil.copytree(both[2] / "run", tmp_path / "run")
    given = EvaluateArguments(str(tmp_path / "run"), out=str(tmp_path / "out"), suite=str(suite), chat="turns", limit=1)
    first = evaluate(given, ALONE)
    assert evaluate(given, ALONE)["entries"] == first["entries"]
    other = TemplateConfig(user="Question: {content}\n", assistant="Reply: {content}</s>", system="{content}\n")
    ChatTemplate(other, both[0].text_tokenizer).save(tmp_path / "run")
    again = evaluate(given, ALONE)
    assert again["entries"]["mine_choice"]["seconds"] != first["entries"]["mine_choice"]["seconds"]
