"""Chat templates: what a network is prompted with is the beginning of what it was tuned on, answers alone are learnt,
and symbols never come from text."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindllm_engine.corpus.chat_template import ChatTemplate, Message, TemplateConfig, load_template
from mindllm_engine.corpus.special_tokens import CHAT_TOKENS
from mindllm_engine.corpus.tokenizer import Tokenizer, train_tokenizer
from mindllm_engine.errors import ConfigError, DataError

TEXTS = [
    "Question: what is it?\nAnswer: it is this.\n",
    "你好，请问这是什么？这是一个问题。",
    "one and two are three",
] * 40
CONFIGS = [
    TemplateConfig(),
    TemplateConfig(system="{content}\n", user="Question: {content}\n", assistant="Answer: {content}\n"),
    TemplateConfig(user="[{content}]<|end|>", assistant="<|assistant|>{content}</s>"),
]
texts = st.lists(st.sampled_from([*"ab 1\n你好<|>/s", *CHAT_TOKENS, "<s>", "</s>"]), max_size=12).map("".join)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(TEXTS, 340, tmp_path_factory.mktemp("t") / "t.model", special_tokens=True)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    config=st.sampled_from(CONFIGS),
    system=st.none() | texts,
    turns=st.lists(st.tuples(texts, texts), min_size=1, max_size=3),
)
def test_prompts_are_prefixes_and_answers_with_their_ends_are_what_is_learnt(
    tokenizer: Tokenizer, config: TemplateConfig, system: str | None, turns: list[tuple[str, str]]
) -> None:
    template = ChatTemplate(config, tokenizer)
    chat = [Message("system", system)] if system is not None else []
    learnt_parts = []
    prompts = []
    for question, answer in turns:
        chat.append(Message("user", question))
        prompts.append(template.prompt(chat))
        chat.append(Message("assistant", answer))
        learnt_parts.append(tokenizer.encode(answer))
    rendered = template.render(chat)
    ids = rendered.ids.tolist()
    for prompt, answer_ids in zip(prompts, learnt_parts, strict=True):
        assert ids[: len(prompt)] == prompt
        assert ids[len(prompt) : len(prompt) + len(answer_ids)] == answer_ids
        assert not rendered.supervised[len(prompt) - 1]
        # The answer and at least the first token after it, which ends it.
        assert rendered.supervised[len(prompt) : len(prompt) + len(answer_ids) + 1].all()
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    assert not rendered.supervised[: len(prompts[0])].any()
    assert rendered.supervised[-1]
    assert ids.count(tokenizer.eos_id) == 1 or config.assistant.endswith("</s>")
    assert len(ids) == len(rendered.supervised)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts)
def test_text_never_becomes_a_symbol(tokenizer: Tokenizer, text: str) -> None:
    symbols = {tokenizer.special_id(name) for name in CHAT_TOKENS} | {tokenizer.bos_id, tokenizer.eos_id}
    template = ChatTemplate(TemplateConfig(), tokenizer)
    empty = template.render([Message("user", ""), Message("assistant", "")]).ids
    ids = template.render([Message("user", text), Message("assistant", text)]).ids
    assert np.isin(ids, list(symbols)).sum() == np.isin(empty, list(symbols)).sum() == len(empty)


def test_an_answer_ends_at_the_symbol_after_it_or_the_end_of_the_chat(tokenizer: Tokenizer) -> None:
    end = tokenizer.special_id("<|end|>")
    assert [ChatTemplate(config, tokenizer).stop_ids for config in CONFIGS] == [{2, end}, {2}, {2}]


def test_the_default_template_in_full(tokenizer: Tokenizer) -> None:
    system, user, assistant, end = (tokenizer.special_id(name) for name in CHAT_TOKENS)
    rendered = ChatTemplate(TemplateConfig(), tokenizer).render(
        [Message("system", "one"), Message("user", "two"), Message("assistant", "three")]
    )
    one, two, three = (tokenizer.encode(text) for text in ("one", "two", "three"))
    context = [1, system, *one, end, user, *two, end, assistant]
    assert rendered.ids.tolist() == [*context, *three, end, 2]
    assert rendered.supervised.tolist() == [False] * len(context) + [True] * (len(three) + 2)


def test_a_saved_template_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for config in CONFIGS:
        ChatTemplate(config, tokenizer).save(tmp_path)
        assert load_template(tmp_path, tokenizer).config == config
    with pytest.raises(DataError, match="no chat template"):
        load_template(tmp_path / "nowhere", tokenizer)
    damages = (b"", b"{", b"[]", b"null", b"{}", b'{"who": "x"}', b'{"system": "{content}"}')
    wrong = (b"1", b"null", b'["{content}"]', b'{"{content}": 1}')
    whole = b'{"system": "{content}", "assistant": "{content}", "user": %s}'
    for damaged in (*damages, *(whole % part for part in wrong)):
        (tmp_path / "chat_template.json").write_bytes(damaged)
        with pytest.raises(DataError, match=r"chat_template\.json: damaged chat template"):
            load_template(tmp_path, tokenizer)
    (tmp_path / "chat_template.json").write_bytes(whole % b'"x"')
    with pytest.raises(ConfigError, match=r"chat_template\.json: template.user: 'x' must hold {content} exactly once"):
        load_template(tmp_path, tokenizer)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TemplateConfig(user="<|user|>"), "template.user"),
        (TemplateConfig(assistant="{content}{content}"), "exactly once"),
        (TemplateConfig(system="{content}</s>"), "answers would never end"),
    ],
)
def test_impossible_templates_are_refused(tokenizer: Tokenizer, config: TemplateConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ChatTemplate(config, tokenizer)


def test_chats_that_teach_nothing_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    template = ChatTemplate(TemplateConfig(), tokenizer)
    for chat, message in (
        ([Message("user", "x")], "without an answer"),
        ([Message("assistant", "x"), Message("user", "y")], "must end with an answer"),
        ([Message("user", "\ud800"), Message("assistant", "y")], "lone surrogate"),
    ):
        with pytest.raises(DataError, match=message):
            template.render(chat)
    plain = train_tokenizer(TEXTS, 320, tmp_path / "plain.model")
    with pytest.raises(ConfigError, match="has no special token"):
        ChatTemplate(TemplateConfig(), plain)
    assert ChatTemplate(CONFIGS[1], plain).stop_ids == {2}
