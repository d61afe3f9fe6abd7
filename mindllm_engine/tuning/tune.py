"""Tuning: records to token files with masks, and the one training loop over them.

The run folder is that of any run, config.yaml included, so that all tools read it. Beside it lie `tuning.yaml`, which
starts the same tuning again, and `chat_template.json`.
"""

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

from mindllm_engine.corpus.chat_template import ChatTemplate
from mindllm_engine.corpus.open_tokenizer import TextTokenizer, open_tokenizer
from mindllm_engine.corpus.prepare import expand_path
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.distributed.process_group import environment_world
from mindllm_engine.errors import ConfigError
from mindllm_engine.models import ModelConfig
from mindllm_engine.training.checkpoint import load_state, newest_checkpoint, step_of
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.loop import pretrain
from mindllm_engine.training.setup import check_before_data, make_plan
from mindllm_engine.training.weights import TOKENIZER_FILE, find_checkpoint, model_config
from mindllm_engine.tuning.config import TuneConfig
from mindllm_engine.tuning.merging import merge_run
from mindllm_engine.tuning.preference_stage import PreferenceStage
from mindllm_engine.tuning.preferences import prepare_pairs
from mindllm_engine.tuning.supervised import prepare_records
from mindllm_engine.tuning.token_documents import RecordsReport
from mindllm_engine.tuning.tuning_stage import TuningStage


def tune(config: TuneConfig) -> None:
    """Tune from `run.init_from`, or go on from the newest checkpoint in the run folder.

    Raises:
        MindLLMError: the configuration, the records, a checkpoint or the machine does not allow it.
    """
    prepared = prepare(config)
    if environment_world().is_first:
        for line in report_lines(prepared):
            print(f"tuning: {line}", file=sys.stderr, flush=True)
    stage = TuningStage if config.tuning.dpo is None else PreferenceStage
    pretrain(prepared.run, stage(prepared.config, prepared.template))
    run = Path(config.run.dir)
    if config.tuning.lora is not None and environment_world().is_first and is_finished(run, config.train.steps):
        print(f"tuning: {merge_run(run)}", file=sys.stderr, flush=True)


def is_finished(run: Path, steps: int) -> bool:
    """Whether a run has done its last step."""
    checkpoint = newest_checkpoint(run / "checkpoints")
    return checkpoint is not None and step_of(checkpoint) == steps


@dataclass(frozen=True)
class PreparedTuning:
    """A tuning whose token files are there.

    Attributes:
        run: what it is to the training loop.
        config: with the network filled in.
        reports: what became of the records of each source.
    """

    run: RunConfig
    config: TuneConfig
    template: ChatTemplate
    reports: dict[str, RecordsReport]


def prepare(config: TuneConfig) -> PreparedTuning:
    """Check a tuning, and make its token files unless they are there. Raises MindLLMError as `tune` does."""
    config, tokenizer = resolve(config)
    run = run_config_of(config, tokenizer)
    check_before_data(run, environment_world().world_size)
    template = ChatTemplate(config.tuning.template, tokenizer)
    prepare_source = prepare_records if config.tuning.dpo is None else prepare_pairs
    files = {name: prepare_source(name, config, template) for name in config.tuning.records}
    run.data.sources = {name: made.train for name, made in files.items()}
    run.data.heldout = {name: made.heldout for name, made in files.items() if made.heldout is not None}
    return PreparedTuning(run, config, template, {name: made.report for name, made in files.items()})


def report_lines(prepared: PreparedTuning) -> list[str]:
    """What will be trained on, for people: records, how they fill samples, and how often the run reads them.

    Raises:
        DataError, ConfigError: the sources cannot give what the blocks ask for.
    """
    plan = make_plan(prepared.run, {name: TokenFile(prefix) for name, prefix in prepared.run.data.sources.items()})
    lines = []
    for number, source in enumerate(plan.sources):
        lines += prepared.reports[source.name].lines(source.name)
        epochs = float(sum(plan.epochs_in(block, number) for block in plan.blocks))
        for seq_len, samples in source.epoch_samples.items():
            filled = source.tokens / (samples * (seq_len + 1))
            lines.append(
                f"{source.name}: an epoch is {samples:,} samples of {seq_len:,} tokens, {filled:.1%} filled; the run "
                f"reads {epochs:.2f}"
            )
    return lines


def resolve(config: TuneConfig) -> tuple[TuneConfig, TextTokenizer]:
    """The configuration with its network, and the tokenizer: by default those of the checkpoint that the run starts
    from, which is its own newest if it has one.

    Raises:
        MindLLMError: there is no such checkpoint, or the tokenizer does not belong to it.
    """
    config.validate_tuning()
    checkpoint = newest_checkpoint(Path(config.run.dir) / "checkpoints")
    if checkpoint is None:
        if config.run.init_from is None:
            raise ConfigError("run.init_from: missing; a tuning starts from the weights of a run folder or checkpoint")
        checkpoint = find_checkpoint(Path(config.run.init_from))
    state = load_state(checkpoint)
    tokenizer = open_tokenizer(expand_path(config.tuning.tokenizer or str(checkpoint.parents[1] / TOKENIZER_FILE)))
    if tokenizer.hash != state.tokenizer_hash:
        raise ConfigError(
            f"tuning.tokenizer: {tokenizer.model_path} ({tokenizer.hash}) does not belong to {checkpoint}, which was "
            f"trained with {state.tokenizer_hash}; give the tokenizer of that run"
        )
    if config.model == ModelConfig():
        config = replace(config, model=model_config(state.model))
    return config, tokenizer


def run_config_of(config: TuneConfig, tokenizer: TextTokenizer) -> RunConfig:
    """The run that the tuning is, with places kept for its sources, whose files may have to be made first."""
    values = {field.name: getattr(config, field.name) for field in fields(RunConfig)}
    data = replace(
        config.data,
        packing="best_fit",
        tokenizer=str(tokenizer.model_path),
        sources={name: name for name in config.tuning.records},
    )
    return RunConfig(**{**values, "data": data})
