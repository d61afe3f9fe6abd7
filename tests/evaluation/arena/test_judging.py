"""Orders that favour no model, and judgements by a real server."""

import re
from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindllm_engine.chat_endpoint import ChatEndpoint, EndpointConfig
from mindllm_engine.corpus.chat_template import Message
from mindllm_engine.evaluation.arena.judging import Judgement, judge, rotated_orders
from mindllm_engine.evaluation.arena.prompts import Prompt
from mindllm_engine.evaluation.arena.wording import WORDINGS, ranking_chat
from tests.chat_server import ChatServer, Reply


@given(st.integers(2, 7), st.integers(1, 6), st.data())
def test_each_model_stands_at_each_place_equally_often(models: int, groups: int, data: st.DataObject) -> None:
    rotations = data.draw(st.integers(1, models))
    orders = rotated_orders(models * groups, models, rotations, seed=groups)
    for rotation in range(rotations):
        for place in range(models):
            assert (np.bincount(orders[:, rotation, place], minlength=models) == groups).all()
    for of_a_prompt in orders:
        assert len({tuple(order) for order in of_a_prompt.tolist()}) == rotations
        for place in range(models):
            assert len(set(of_a_prompt[:, place].tolist())) == rotations


def test_each_model_stands_before_each_other_equally_often() -> None:
    orders = rotated_orders(8 * 5, 4, 2, seed=0).reshape(-1, 4)
    before = Counter((int(a), int(b)) for order in orders for i, a in enumerate(order) for b in order[i + 1 :])
    assert {before[pair] for pair in permutations(range(4), 2)} == {40}


def shown_answers(request: dict[str, Any]) -> dict[str, str]:
    """Label -> answer, as the judge sees them."""
    return dict(re.findall(r"\[Answer ([A-Z])\]\n(.*)", request["messages"][1]["content"]))


def judgements_of(server: ChatServer, answers: list[list[str]], rotations: int = 2, **options: Any) -> list[Judgement]:
    prompts = [Prompt(str(number), (Message("user", f"question {number}"),)) for number in range(len(answers))]
    orders = rotated_orders(len(answers), len(answers[0]), rotations, seed=0)
    config = EndpointConfig(**{"url": server.url, "model": "judge", "retries": 0, "timeout_seconds": 5.0, **options})
    with ChatEndpoint(config) as endpoint:
        wording = WORDINGS["en"]
        return judge(endpoint, prompts, answers, orders, wording, wording.criteria, 99, lambda done, total: None)


def by_number(request: dict[str, Any]) -> str:
    """Prefers answers with larger numbers."""
    shown = {label: int(answer.split()[-1]) for label, answer in shown_answers(request).items()}
    groups: dict[int, list[str]] = {}
    for label, number in shown.items():
        groups.setdefault(number, []).append(label)
    return "Ranking: " + " > ".join(" = ".join(groups[number]) for number in sorted(groups, reverse=True))


def test_ranks_are_the_models_own_whatever_the_order() -> None:
    with ChatServer(by_number) as server:
        judgements = judgements_of(server, [["answer 3", "answer 9", "answer 3"]] * 6, rotations=3)
    assert len(judgements) == 18
    assert all(judgement.ranks == (1, 0, 1) for judgement in judgements)
    assert len({judgement.order for judgement in judgements}) > 2


def test_nonsense_is_asked_for_again_once_in_the_same_chat() -> None:
    def second_time(request: dict[str, Any]) -> str:
        return "Both have merits." if len(request["messages"]) == 2 else by_number(request)

    with ChatServer(second_time) as server:
        judgements = judgements_of(server, [["answer 1", "answer 2"]] * 3)
    assert all(judgement.ranks == (1, 0) and judgement.asked_again for judgement in judgements)
    again = [request["messages"] for request in server.requests if len(request["messages"]) == 4]
    assert again[0][2] == {"role": "assistant", "content": "Both have merits."}
    assert "the reply holds no ranking" in again[0][3]["content"]


def test_nonsense_twice_fails_and_its_text_is_kept() -> None:
    with ChatServer(lambda request: f"I like poems. {len(request['messages'])}") as server:
        judgements = judgements_of(server, [["answer 1", "answer 2"]] * 3)
    assert len(server.requests) == 12
    assert all(judgement.ranks is None for judgement in judgements)
    assert {judgement.reply for judgement in judgements} == {"I like poems. 4"}
    assert {judgement.failure for judgement in judgements} == {"the reply holds no ranking"}


def test_a_judge_that_fails_when_asked_again_leaves_its_first_text() -> None:
    with ChatServer(lambda request: "Hm." if len(request["messages"]) == 2 else Reply(400, b"full")) as server:
        [judgement, _] = judgements_of(server, [["answer 1", "answer 2"]])
    assert judgement.reply == "Hm."
    assert judgement.failure is not None
    assert "400" in judgement.failure


@pytest.mark.parametrize("language", ["zh", "en"])
def test_the_judge_sees_all_and_no_names(language: Any) -> None:
    wording = WORDINGS[language]
    prompt = Prompt(
        "id", (Message("user", "问一"), Message("assistant", "答一"), Message("user", "问二 {x}")), "第一条 {y}"
    )
    system, user = ranking_chat(wording, wording.criteria, prompt, ["甲 {z}", "  ", "丙"])
    for text in ("问一", "答一", "问二 {x}", "第一条 {y}", "甲 {z}", wording.empty, "丙"):
        assert text in user.content
    assert [user.content.count(wording.answer.format(label=label)) for label in "ABCD"] == [1, 1, 1, 0]
    assert "B > A = C" in system.content
    assert wording.criteria in system.content
