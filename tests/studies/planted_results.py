"""Results with planted held-out losses, of the trials that an experiment names: what they would be had they been
trained, so that an analysis can be held against what was planted."""

from collections.abc import Callable, Mapping
from typing import Any

from mindllm_engine.studies.results import LeftOut, Result, Results
from mindllm_engine.studies.trials import PlannedTrial, Trial

# Held-out records of a trial, by its settings.
Law = Callable[[Trial], list[dict[str, Any]]]


def planted_results(planned: list[PlannedTrial], law: Law, left_out: Mapping[str, str] | None = None) -> Results:
    """Results of these trials but those of `left_out` (name -> reason), with the records that `law` gives them."""
    missing = left_out or {}
    found = [_result(trial, law) for trial in planned if trial.name not in missing]
    return Results(found, [LeftOut(name, reason) for name, reason in missing.items()])


def _result(planned: PlannedTrial, law: Law) -> Result:
    read = {name for block in planned.config.data.blocks for name in block.weights or planned.config.data.sources}
    text = {"tokenizer": "t", **{name: f"content of {name}" for name in sorted(read)}}
    tokens = planned.config.train.global_batch_size * planned.config.data.seq_len
    records = [{"tokens": record["step"] * tokens, **record} for record in law(planned.trial)]
    return Result(
        planned.name,
        planned.trial.settings,
        planned.folder,
        planned.config,
        planned.parameters,
        planned.layer_parameters,
        records,
        text,
        1.0,
    )
