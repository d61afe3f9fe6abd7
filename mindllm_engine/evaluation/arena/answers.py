"""The answers of an arena's models: from run folders, by our generation; from servers; or from files.

What is generated or received is kept in a cache at once, so that an arena that was killed goes on where it was.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from mindllm_engine.chat_endpoint import AnswerCache, ChatEndpoint, EndpointConfig, EndpointFailure, request_key
from mindllm_engine.corpus.chat_template import load_template
from mindllm_engine.corpus.json_lines import read_json_lines
from mindllm_engine.data.atomic_files import file_hash
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.evaluation.arena.prompts import Prompt
from mindllm_engine.evaluation.batched_generation import Sampling, generate_batch
from mindllm_engine.training.checkpoint import STATE_FILE
from mindllm_engine.training.weights import find_checkpoint, load_model_for_inference

Answer = str | EndpointFailure
Show = Callable[[int, int], None]


@dataclass
class Contestant:
    """A model of the arena, by one of three."""

    run: str | None = None
    """Folder of a tuned run; its newest network answers."""
    endpoint: EndpointConfig | None = None
    """A server that answers."""
    answers: str | None = None
    """JSON lines of answers given elsewhere: {"id": a prompt's, "answer": ...} for each prompt."""

    def validate(self, name: str) -> None:
        """Raises `ConfigError` unless exactly one is given."""
        given = [key for key in ("run", "endpoint", "answers") if getattr(self, key) is not None]
        if len(given) != 1:
            what = " and ".join(given) or "none"
            raise ConfigError(f"contestants.{name}: give one of run, endpoint and answers, not {what}")
        if self.endpoint is not None:
            self.endpoint.validate()


@dataclass
class AnswerOptions:
    """How the models answer. Servers take temperature and max_new_tokens, and leave the rest."""

    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that reach this probability together."""
    max_new_tokens: int = 512
    """The longest answer, in the model's tokens."""
    seed: int = 0
    """With a temperature above 0, the same seed gives the same answers of a run's network, whatever the batch."""
    batch_size: int = 32
    """Prompts that a run's network answers at a time."""

    def validate(self) -> None:
        """Raises `ConfigError` naming the first key that cannot be used."""
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"answering.temperature must be 0 or above, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"answering.top_p must be above 0 and at most 1, not {self.top_p}")
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise ConfigError("answering.max_new_tokens and answering.batch_size must be at least 1")


def answers_of(
    contestant: Contestant, prompts: Sequence[Prompt], options: AnswerOptions, cache: Path, show: Show
) -> list[Answer]:
    """A contestant's answer to each prompt, or why it has none.

    Args:
        cache: file for answers of run folders.
        show: called with (prompts done, prompts).

    Raises:
        ConfigError, DataError, CheckpointError: the contestant cannot answer at all.
    """
    if contestant.answers is not None:
        return answers_of_file(contestant.answers, prompts)
    if contestant.endpoint is not None:
        with ChatEndpoint(contestant.endpoint) as endpoint:
            chats = [prompt.messages for prompt in prompts]
            return endpoint.complete_many(chats, options.temperature, options.max_new_tokens, show)
    assert contestant.run is not None
    return answers_of_run(Path(contestant.run), prompts, options, AnswerCache(cache), show)


def answers_of_file(path: str, prompts: Sequence[Prompt]) -> list[Answer]:
    """Answers given elsewhere. Raises DataError for a damaged line and for a prompt without an answer."""
    answers: dict[str, Answer] = {}
    for where, content in read_json_lines(path):
        if not isinstance(content, dict) or not {"id", "answer"} <= content.keys():
            raise DataError(f"{path}: {where}: each line must be an object with id and answer")
        if not isinstance(content["answer"], str | None):
            raise DataError(f"{path}: {where}: answer must be a text, or null where there is none")
        answer = content["answer"]
        answers[str(content["id"])] = EndpointFailure("none in the file") if answer is None else answer
    missing = [prompt.id for prompt in prompts if prompt.id not in answers]
    if missing:
        raise DataError(f"{path}: lacks answers to {len(missing)} of {len(prompts)} prompts, the first is {missing[0]}")
    return [answers[prompt.id] for prompt in prompts]


def answers_of_run(
    run: Path, prompts: Sequence[Prompt], options: AnswerOptions, cache: AnswerCache, show: Show
) -> list[Answer]:
    """Answers of a run folder's newest network, greedy or sampled with a seed of each prompt, many at a time.

    An answer depends on the prompt, the weights, the template and the options, not on the batch. A prompt that leaves
    no room in the network's context fails.
    """
    weights = file_hash(find_checkpoint(run) / STATE_FILE)  # the state holds checksums of all else
    model, tokenizer = load_model_for_inference(str(run))
    template = load_template(run, tokenizer)
    outcomes: dict[int, Answer] = {}
    waiting: dict[int, list[int]] = defaultdict(list)  # most new tokens -> prompts
    ids, requests = [], []
    for number, prompt in enumerate(prompts):
        ids.append(template.prompt(prompt.messages))
        request = {
            "weights": weights,
            "tokens": ids[-1],
            "max_tokens": options.max_new_tokens,
            "temperature": options.temperature,
        }
        if options.temperature > 0:
            request |= {"top_p": options.top_p, "seed": _seed(options.seed, prompt.id)}
        requests.append(request)
        room = model.config.max_seq_len - len(ids[-1])
        key = request_key(request)
        if key in cache.answers:
            outcomes[number] = cache.answers[key]
        elif room < 1:
            limit = model.config.max_seq_len
            outcomes[number] = EndpointFailure(f"the prompt's {len(ids[-1])} tokens leave no room in {limit}")
        else:
            waiting[min(options.max_new_tokens, room)].append(number)
    show(len(outcomes), len(prompts))
    for limit, numbers in sorted(waiting.items()):
        for start in range(0, len(numbers), options.batch_size):
            batch = numbers[start : start + options.batch_size]
            texts = generate_batch(
                model,
                [np.array(ids[number], np.int32) for number in batch],
                limit,
                tokenizer.vocab_size,
                lambda tokens: tokens[-1] in template.stop_ids,
                Sampling(options.temperature, options.top_p),
                [_seed(options.seed, prompts[number].id) for number in batch],
            )
            for number, tokens in zip(batch, texts, strict=True):
                answer = tokenizer.decode(tokens[:-1] if tokens[-1] in template.stop_ids else tokens)
                outcomes[number] = cache.add(request_key(requests[number]), requests[number], answer)
            show(len(outcomes), len(prompts))
    return [outcomes[number] for number in range(len(prompts))]


def _seed(seed: int, prompt_id: str) -> int:
    return xxhash.xxh3_64_intdigest(f"{seed}:{prompt_id}".encode()) >> 1
