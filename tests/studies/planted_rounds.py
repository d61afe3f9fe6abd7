"""Trials that were never trained, with losses by a law that a test knows, for the analyses of the wind tunnel."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mindllm_engine.command_line import parse_mapping
from mindllm_engine.studies.results import LeftOut, Result, Results
from mindllm_engine.studies.trials import Trial
from mindllm_engine.training.config import RunConfig

BASE: dict[str, Any] = {
    "run": {"dir": "unused"},
    "model": {
        "minicpm": {
            "vocab_size": 4096,
            "hidden_size": 64,
            "ffn_size": 160,
            "n_layers": 2,
            "n_heads": 4,
            "n_kv_heads": 4,
            "max_seq_len": 32,
            "scale_emb": 12.0,
            "scale_depth": 1.4,
            "init_std": 0.1,
            "width_base": 64,
        }
    },
    "data": {"seq_len": 32, "sources": {"a": "a"}},
    "optim": {"lr": 0.01, "schedule": {"kind": "cosine", "warmup_steps": 2, "min_lr": 0.001}},
    "train": {"steps": 10, "global_batch_size": 4, "micro_batch_size": 2},
}


def results_with(
    trials: Iterable[Trial], loss: Callable[[dict[str, Any]], float | None], text: dict[str, str] | None = None
) -> Results:
    """Trials as if trained: each with the loss that `loss` gives its settings, diverged where that is None."""
    finished, left_out = [], []
    for trial in trials:
        value = loss(dict(trial.settings))
        if value is None:
            left_out.append(LeftOut(trial.name, "diverged: its held-out loss is not finite"))
            continue
        records = [{"step": 10, "tokens": 1280, "heldout_loss": value}]
        where = Path("nowhere") / trial.name
        of = text or {"tokenizer": "t"}
        finished.append(Result(trial.name, trial.settings, where, _config(), 0, 0, records, of, 0.0))
    return Results(finished, left_out)


@functools.cache
def _config() -> RunConfig:
    return parse_mapping(RunConfig, BASE, "planted")


def run_rounds(experiment: Any, seeds: list[int], loss: Callable[[dict[str, Any]], float | None]) -> Results:
    """What a study does: ask for trials until no new ones come."""
    results, known = None, set[str]()
    while True:
        trials = experiment.trials(BASE, seeds, results)
        names = {trial.name for trial in trials}
        assert known <= names, "an experiment names again what it named before"
        assert len(names) == len(trials)
        if results is not None and names == known:
            return results
        known, results = names, results_with(trials, loss)
