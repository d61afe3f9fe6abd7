"""What a study's trials came to, read from their run folders; and which may stand in one fit."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindllm_engine.errors import DataError
from mindllm_engine.studies.trials import PlannedTrial
from mindllm_engine.studies.worker import read_outcome
from mindllm_engine.training.checkpoint import load_state, newest_checkpoint
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.metrics import read_metrics


@dataclass(frozen=True)
class LeftOut:
    """A trial that no analysis reads, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Result:
    """A finished trial.

    Attributes:
        settings: of the trial.
        parameters: of the network; the embedding counts once.
        layer_parameters: those without the embedding.
        records: of its metrics.jsonl, and before them those of the trial it continued.
        text: hash of its tokenizer, under "tokenizer", and of the token file of each source that it read.
        seconds: that training took, since it was last taken up.
    """

    name: str
    settings: Mapping[str, Any]
    folder: Path
    config: RunConfig
    parameters: int
    layer_parameters: int
    records: list[dict[str, Any]]
    text: dict[str, str]
    seconds: float

    @property
    def last(self) -> dict[str, Any]:
        """The last record with held-out losses, `heldout_loss` (nats a token) and `heldout_bpb` (bits per byte), of all
        and of each source as `heldout_bpb/<source>`."""
        return self.evaluations[-1]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """All records with held-out losses, in the order of their steps."""
        return [record for record in self.records if "heldout_loss" in record]

    @property
    def training_losses(self) -> dict[int, float]:
        """Tokens trained on -> training loss of the step that ended there, nats a token, where it was logged."""
        logged = [record for record in self.records if record.get("loss") is not None]
        return {int(record["tokens"]): float(record["loss"]) for record in logged}

    @property
    def loss(self) -> float:
        """Held-out loss at the end, nats a token."""
        return float(self.last["heldout_loss"])

    @property
    def tokens(self) -> int:
        """Tokens trained on, from the very beginning."""
        return int(self.last["tokens"])


class Results(Sequence[Result]):
    """The finished trials of a study, in its order, and those that are left out.

    An experiment asks with `with_settings` for the trials it compares.
    """

    def __init__(self, finished: Iterable[Result], left_out: Iterable[LeftOut]) -> None:
        self.finished = list(finished)
        self.left_out = list(left_out)

    def __len__(self) -> int:
        return len(self.finished)

    def __getitem__(self, place: Any) -> Any:
        return self.finished[place]

    def __iter__(self) -> Iterator[Result]:
        return iter(self.finished)

    def with_settings(self, **settings: Any) -> "Results":
        """Those whose settings have these values."""
        return self.where(lambda result: all(result.settings.get(key) == value for key, value in settings.items()))

    def where(self, keep: Callable[[Result], bool]) -> "Results":
        """Those for which `keep` holds."""
        return Results([result for result in self.finished if keep(result)], self.left_out)

    def named(self, name: str) -> Result | None:
        """The finished trial of this name."""
        return next((result for result in self.finished if result.name == name), None)

    def by_seed(self, value: Callable[[Result], float], **settings: Any) -> dict[int, float]:
        """Seed -> a number of the trial with these settings and that seed."""
        return {int(result.settings["seed"]): value(result) for result in self.with_settings(**settings)}


def read_results(planned: Sequence[PlannedTrial], too_large: Sequence[LeftOut] = ()) -> Results:
    """The results of trials that have ended. A diverged one is left out: of which the run said so, or whose held-out
    loss of the sources that it read is not finite or has not fallen."""
    finished, left_out = [], list(too_large)
    for trial in planned:
        outcome = read_outcome(trial.folder)
        if outcome is None:
            lost = f"it needs {trial.parent.name}, which is left out" if trial.parent else "it has not ended"
            left_out.append(LeftOut(trial.name, lost))
        elif outcome["kind"] != "finished":
            left_out.append(LeftOut(trial.name, f"{outcome['kind']}: {outcome['reason']}"))
        else:
            result = _read(trial, float(outcome["seconds"]))
            reason = _divergence(result)
            if reason is None:
                finished.append(result)
            else:
                left_out.append(LeftOut(trial.name, reason))
    return Results(finished, left_out)


def refuse_mixed_text(results: Iterable[Result], purpose: str, same_sources: bool = True) -> None:
    """Refuse to compare runs of different tokenizers or data, whose losses are not of the same thing.

    Args:
        purpose: what they were to be compared for.
        same_sources: they must have read the same sources; else those that they share must be the same.

    Raises:
        DataError: naming two that differ, and in what.
    """
    seen: dict[str, tuple[str, Result]] = {}
    first: Result | None = None
    for result in results:
        first = first or result
        strange = sorted(result.text.keys() ^ first.text.keys()) if same_sources else []
        for what, content in result.text.items():
            known, of = seen.setdefault(what, (content, result))
            if known != content:
                strange, first = [what], of
        if strange:
            what = strange[0] if strange[0] == "tokenizer" else f"source {strange[0]}"
            raise DataError(
                f"{purpose}: {first.name} and {result.name} differ in their {what}, so their losses do not compare; "
                f"delete {first.folder} or {result.folder} and start again"
            )


def _read(trial: PlannedTrial, seconds: float) -> Result:
    checkpoint = newest_checkpoint(trial.folder / "checkpoints")
    if checkpoint is None:
        raise DataError(f"{trial.folder}: has no checkpoint, though the trial is finished; delete it and start again")
    state = load_state(checkpoint)
    sources = {name: str(source["content"]) for name, source in state.plan["sources"].items()}
    return Result(
        trial.name,
        trial.trial.settings,
        trial.folder,
        trial.config,
        trial.parameters,
        trial.layer_parameters,
        _records(trial),
        {"tokenizer": state.tokenizer_hash} | sources,
        seconds,
    )


def _records(trial: PlannedTrial) -> list[dict[str, Any]]:
    own = read_metrics(trial.folder)
    if trial.trial.continues is None or trial.parent is None:
        return own
    return [record for record in _records(trial.parent) if record["step"] <= trial.first_step] + own


def _divergence(result: Result) -> str | None:
    losses = [_loss_of_what_it_read(result, record) for record in result.evaluations]
    if not losses or None in losses:
        return "it has no held-out loss of what it was trained on; give its sources held-out documents (corpus.holdout)"
    first, last = losses[0], losses[-1]
    if first is None or last is None or not math.isfinite(last):
        return "diverged: its held-out loss is not finite"
    if len(losses) > 1 and last >= first:
        return f"diverged: its held-out loss has not fallen, from {first:.3f} to {last:.3f} nats a token"
    return None


def _loss_of_what_it_read(result: Result, record: Mapping[str, Any]) -> float | None:
    """The mean held-out loss, nats a token, of the sources that a run was trained on; None if none of them has any. On
    others it may well rise."""
    losses = [record[key] for name in result.text if (key := f"heldout_loss/{name}") in record]
    return math.fsum(math.inf if loss is None else loss for loss in losses) / len(losses) if losses else None
