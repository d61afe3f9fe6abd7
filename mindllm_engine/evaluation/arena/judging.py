"""A judge ranks the answers to each prompt, several times in rotated orders, so that no model gains by its place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mindllm_engine.chat_endpoint import ChatEndpoint, EndpointFailure
from mindllm_engine.corpus.chat_template import Message
from mindllm_engine.evaluation.arena.prompts import Prompt
from mindllm_engine.evaluation.arena.ranking import parse_ranking, ranks_of
from mindllm_engine.evaluation.arena.wording import Wording, labels_of, ranking_chat, retry_message


@dataclass(frozen=True)
class Judgement:
    """One ranking of one prompt's answers.

    Attributes:
        prompt, rotation: numbers from 0.
        order: the models in the order in which their answers were shown.
        ranks: the rank of each model, 0 the best, equal ones shared; None where the judge gave none.
        reply: what the judge said last.
        failure: why there are no ranks.
        asked_again: the first reply held no ranking.
    """

    prompt: int
    rotation: int
    order: tuple[int, ...]
    ranks: tuple[int, ...] | None
    reply: str | None
    failure: str | None = None
    asked_again: bool = False


def rotated_orders(prompts: int, models: int, rotations: int, seed: int) -> NDArray[np.int64]:
    """(prompts, rotations, models): the models in the order in which they are shown.

    A prompt's orders are shifts of one cycle of the models, as far apart as they can be. Over each `models` consecutive
    prompts every model stands at every place equally often (in each rotation by itself); each second such group goes
    through its cycle backwards, so that over two groups every model also stands before every other equally often.
    """
    rng = np.random.default_rng(seed)
    orders = np.empty((prompts, rotations, models), np.int64)
    cycle = np.arange(models)
    for prompt in range(prompts):
        group, shift = divmod(prompt, models)
        if shift == 0:
            cycle = cycle[::-1] if group % 2 else rng.permutation(models)
        for rotation in range(rotations):
            orders[prompt, rotation] = np.roll(cycle, -(shift + rotation * (models // rotations)))
    return orders


def judge(
    endpoint: ChatEndpoint,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[str]],
    orders: NDArray[np.int64],
    wording: Wording,
    criteria: str,
    max_tokens: int,
    show: Callable[[int, int], None],
) -> list[Judgement]:
    """The judgements of all prompts and rotations; a reply without a ranking is asked for again once.

    Args:
        answers: of each prompt, by model.
        orders: (prompts, rotations, models).
        criteria: what the judge goes by.
        max_tokens: the judge's longest reply.

    Raises:
        ConfigError: the judge cannot be reached or refuses the key, from the start.
    """
    asked = [(prompt, rotation) for prompt in range(len(prompts)) for rotation in range(orders.shape[1])]
    chats = [
        ranking_chat(wording, criteria, prompts[prompt], [answers[prompt][model] for model in orders[prompt, rotation]])
        for prompt, rotation in asked
    ]
    replies = endpoint.complete_many(chats, 0.0, max_tokens, show)
    judgements = [
        _judgement(prompt, rotation, orders[prompt, rotation], reply)
        for (prompt, rotation), reply in zip(asked, replies, strict=True)
    ]
    again = [number for number, judged in enumerate(judgements) if judged.failure and judged.reply is not None]
    second_chats = [
        (*chats[number], Message("assistant", judgements[number].reply or ""), _retry(wording, judgements[number]))
        for number in again
    ]
    for number, reply in zip(again, endpoint.complete_many(second_chats, 0.0, max_tokens), strict=True):
        prompt, rotation = asked[number]
        second = _judgement(prompt, rotation, orders[prompt, rotation], reply, asked_again=True)
        judgements[number] = replace(second, reply=second.reply or judgements[number].reply)
    return judgements


def _retry(wording: Wording, judged: Judgement) -> Message:
    return retry_message(wording, judged.failure or "", len(judged.order))


def _judgement(
    prompt: int, rotation: int, order: NDArray[np.int64], reply: str | EndpointFailure, asked_again: bool = False
) -> Judgement:
    shown = tuple(int(model) for model in order)
    if isinstance(reply, EndpointFailure):
        return Judgement(prompt, rotation, shown, None, None, f"no reply: {reply.reason}", asked_again)
    labels = labels_of(len(shown))
    try:
        by_place = ranks_of(parse_ranking(reply, labels), labels)
    except ValueError as error:
        return Judgement(prompt, rotation, shown, None, reply, str(error), asked_again)
    ranks = tuple(by_place[shown.index(model)] for model in range(len(shown)))
    return Judgement(prompt, rotation, shown, ranks, reply, None, asked_again)
