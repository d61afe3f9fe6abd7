"""An arena from its configuration to its report: answers, judgements, ratings.

OUTPUT/results.json           all figures
       ratings.md, arena.png  the same for people
       judgements.jsonl       every ranking or failure, with what the judge said
       answers/NAME.jsonl     every answer, in the form that `contestants.NAME.answers` reads
       answers.cache.jsonl    answers of run folders, and judge.cache.jsonl the judge's replies: what makes a second
                              run quick, and one that was killed go on
"""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from mindllm_engine.chat_endpoint import ChatEndpoint, EndpointConfig, EndpointFailure
from mindllm_engine.data.atomic_files import write_atomically
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.evaluation.arena.analysis import analyse
from mindllm_engine.evaluation.arena.answers import Answer, AnswerOptions, Contestant, answers_of
from mindllm_engine.evaluation.arena.judging import Judgement, judge, rotated_orders
from mindllm_engine.evaluation.arena.progress import progress
from mindllm_engine.evaluation.arena.prompts import Prompt, Turn, read_prompts
from mindllm_engine.evaluation.arena.report import plot, to_markdown
from mindllm_engine.evaluation.arena.wording import WORDINGS, Language

_MOST_MODELS = 26  # letters
_FILE_NAME = re.compile(r"[\w.\-]+")


@dataclass
class ArenaConfig:
    """Models, prompts and a judge."""

    prompts: str
    """JSON lines of consultations (query, laws, history), chats (messages) or instructions; may be compressed."""
    contestants: dict[str, Contestant]
    """Name -> model: two or more."""
    judge: EndpointConfig
    """The server that ranks the answers. Its cache is judge.cache.jsonl in the output folder unless it names one."""
    output: str
    """Folder for the results."""
    turn: Turn = "last"
    """Of a chat with several questions, ask the first alone, or the last after all that was said before."""
    limit: int | None = None
    """The first so many prompts; None takes all."""
    answering: AnswerOptions = field(default_factory=AnswerOptions)
    """How the models answer."""
    language: Language = "zh"
    """Of what the judge is told."""
    criteria: str | None = None
    """Text file with what the judge goes by, in place of the built-in criteria."""
    rotations: int = 2
    """How often each prompt is judged, each time with the answers in another order."""
    judge_max_tokens: int = 1024
    """The judge's longest reply."""
    replicates: int = 1000
    """Draws of the bootstrap over prompts."""
    seed: int = 0
    """Of the orders, the bootstrap and the shuffles of Elo."""

    def validate(self) -> None:
        """Raises `ConfigError` naming the first key that cannot be used."""
        models = len(self.contestants)
        if not 2 <= models <= _MOST_MODELS:
            raise ConfigError(f"contestants: an arena takes 2 to {_MOST_MODELS} models, not {models}")
        for name, contestant in self.contestants.items():
            if not _FILE_NAME.fullmatch(name):
                raise ConfigError(f"contestants: {name!r} must be letters, digits, dots, hyphens and underscores only")
            contestant.validate(name)
        self.judge.validate()
        self.answering.validate()
        if not 1 <= self.rotations <= models:
            raise ConfigError(f"rotations must be 1 to the number of models, {models}, not {self.rotations}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit must be at least 1, not {self.limit}")
        if self.replicates < 100:
            raise ConfigError(f"replicates must be at least 100 for an interval, not {self.replicates}")
        if self.judge_max_tokens < 1 or self.seed < 0:
            raise ConfigError("judge_max_tokens must be at least 1 and seed 0 or above")


def run_arena(config: ArenaConfig) -> dict[str, Any]:
    """Answer, judge and rate; writes the files above and gives what results.json holds.

    Raises:
        ConfigError: a key that cannot be used, or a server that cannot be reached.
        DataError: prompts or answers that cannot be read, or a judge that ranked nothing (judgements.jsonl holds what
            it said).
        CheckpointError: a run folder without a network.
    """
    config.validate()
    criteria = _criteria(config)
    output = Path(config.output)
    prompts, bad = read_prompts(config.prompts, config.turn, config.limit)
    answers = {}
    for name, contestant in config.contestants.items():
        with progress(f"answers of {name}") as show:
            answers[name] = answers_of(contestant, prompts, config.answering, output / "answers.cache.jsonl", show)
        write_atomically(output / "answers" / f"{name}.jsonl", _answer_lines(prompts, answers[name]))
    judged_prompts, judged_answers = _answered_by_all(prompts, list(answers.values()))
    if not judged_prompts:
        raise DataError(f"{config.prompts}: no prompt was answered by all models; {_failures(answers)}")
    orders = rotated_orders(len(judged_prompts), len(answers), config.rotations, config.seed)
    judge_config = dataclasses.replace(config.judge, cache=config.judge.cache or str(output / "judge.cache.jsonl"))
    with progress("judgements") as show, ChatEndpoint(judge_config) as endpoint:
        judgements = judge(
            endpoint,
            judged_prompts,
            judged_answers,
            orders,
            WORDINGS[config.language],
            criteria,
            config.judge_max_tokens,
            show,
        )
    names = list(answers)
    write_atomically(output / "judgements.jsonl", _judgement_lines(judged_prompts, names, judgements))
    try:
        results = analyse(names, judgements, config.replicates, config.seed)
    except DataError as error:
        raise DataError(f"{error}; {output / 'judgements.jsonl'} holds what it said") from error
    results = {"judge": config.judge.model, "config": dataclasses.asdict(config), **results}
    results["prompts"] = {"read": len(prompts), "bad": len(bad), "judged": len(judged_prompts)}
    results["bad_prompts"] = [f"{each.where}: {each.reason}" for each in bad]
    results["answers"] = {name: _describe(given) for name, given in answers.items()}
    if bad:
        results["warnings"].append(f"{len(bad)} lines of {config.prompts} hold no prompt, the first is {bad[0].where}")
    if len(judged_prompts) < len(prompts):
        left = len(prompts) - len(judged_prompts)
        results["warnings"].append(f"{left} prompts left out, since some model gave no answer: {_failures(answers)}")
    write_atomically(output / "results.json", orjson.dumps(results, option=orjson.OPT_INDENT_2) + b"\n")
    write_atomically(output / "ratings.md", to_markdown(results, f"Arena judged by {config.judge.model}").encode())
    write_atomically(output / "arena.png", plot(results))
    return results


def _criteria(config: ArenaConfig) -> str:
    if config.criteria is None:
        return WORDINGS[config.language].criteria
    try:
        text = Path(config.criteria).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"criteria: {config.criteria}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"criteria: {config.criteria}: is no UTF-8 text") from error
    if not text:
        raise ConfigError(f"criteria: {config.criteria}: is empty")
    return text


def _answered_by_all(prompts: list[Prompt], answers: list[list[Answer]]) -> tuple[list[Prompt], list[list[str]]]:
    kept, texts = [], []
    for prompt, given in zip(prompts, zip(*answers, strict=True), strict=True):
        said = [answer for answer in given if isinstance(answer, str)]
        if len(said) == len(given):
            kept.append(prompt)
            texts.append(said)
    return kept, texts


def _describe(answers: list[Answer]) -> dict[str, Any]:
    """How many there are, how many are empty, and their mean length: judges like long answers."""
    texts = [answer for answer in answers if isinstance(answer, str)]
    failed = [answer.reason for answer in answers if isinstance(answer, EndpointFailure)]
    return {
        "given": len(texts),
        "empty": sum(not text.strip() for text in texts),
        "failed": len(failed),
        "first_failure": failed[0] if failed else None,
        "mean_characters": sum(map(len, texts)) / max(1, len(texts)),
    }


def _failures(answers: dict[str, list[Answer]]) -> str:
    parts = []
    for name, given in answers.items():
        about = _describe(given)
        if about["failed"]:
            parts.append(f"{name} {about['failed']} times, first: {about['first_failure']}")
    return "; ".join(parts)


def _answer_lines(prompts: list[Prompt], answers: list[Answer]) -> bytes:
    lines = []
    for prompt, answer in zip(prompts, answers, strict=True):
        said = {"answer": None, "failure": answer.reason} if isinstance(answer, EndpointFailure) else {"answer": answer}
        lines.append(orjson.dumps({"id": prompt.id, **said}))
    return b"".join(line + b"\n" for line in lines)


def _judgement_lines(prompts: list[Prompt], names: list[str], judgements: list[Judgement]) -> bytes:
    lines = []
    for judged in judgements:
        ranks = None if judged.ranks is None else dict(zip(names, judged.ranks, strict=True))
        shown = [names[model] for model in judged.order]
        line = dataclasses.asdict(judged) | {"prompt": prompts[judged.prompt].id, "order": shown, "ranks": ranks}
        lines.append(orjson.dumps(line) + b"\n")
    return b"".join(lines)
