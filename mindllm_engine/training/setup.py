"""Everything a run needs before its first step: data opened and checked, the network built, a checkpoint read.

`open_data` needs no other rank, so that mistakes in the configuration and the data show before any process group
starts.
"""

import contextlib
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mindllm_engine.command_line import config_to_yaml
from mindllm_engine.corpus.open_tokenizer import TextTokenizer, open_tokenizer
from mindllm_engine.corpus.prepare import prepare_corpus, token_prefixes, tokenizer_file, tokenizer_path
from mindllm_engine.data.atomic_files import write_atomically
from mindllm_engine.data.cache_folder import CacheFolder
from mindllm_engine.data.loader import Batch, Loader
from mindllm_engine.data.plan import Plan, SourceFacts
from mindllm_engine.data.remote import Source, open_source, open_whole
from mindllm_engine.data.stream import packed_windows
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.distributed.backend import Backend
from mindllm_engine.distributed.deepspeed_backend import DeepSpeedZero1, check_deepspeed
from mindllm_engine.distributed.execution_order import record_execution_order
from mindllm_engine.distributed.process_group import World, raise_together, ranks_with_another_value
from mindllm_engine.distributed.rendezvous import spans
from mindllm_engine.distributed.zero1 import Zero1
from mindllm_engine.errors import CheckpointError, ConfigError, DataError
from mindllm_engine.kernels.attention import select_attention
from mindllm_engine.kernels.backend import select_kernels
from mindllm_engine.models import Network
from mindllm_engine.models.layer_options import apply_layer_options, check_compiler
from mindllm_engine.optim.step_guard import StepGuard
from mindllm_engine.training.checkpoint import CheckpointState, first_difference, load_state, newest_checkpoint
from mindllm_engine.training.checkpointer import Checkpointer
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.environment import record_environment
from mindllm_engine.training.metrics import METRICS_FILE, MetricsLog
from mindllm_engine.training.progress import TrainingProgress
from mindllm_engine.training.stage import Stage
from mindllm_engine.training.throughput import peak_flops
from mindllm_engine.training.weights import TOKENIZER_FILE, find_checkpoint, initial_weights, refuse_other_tokenizer

CONFIG_FILE = "config.yaml"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass
class Data:
    """The data of a run, open and checked.

    Attributes:
        sources: training files in the order of the plan's sources.
        heldout: held-out file of each source, in the same order; None where there is none.
        plan: which sample is which.
        tokenizer: None where the configuration names none.
    """

    sources: list[Source]
    heldout: list[TokenFile | None]
    plan: Plan
    tokenizer: TextTokenizer | None

    @property
    def names(self) -> list[str]:
        return [source.name for source in self.plan.sources]


@dataclass
class Run:
    """A run in progress.

    `step` counts the optimizer steps done; `next_sample` is the first global sample that has not been consumed.
    """

    config: RunConfig
    world: World
    data: Data
    loader: Loader
    heldout: list[Batch]
    model: Network
    backend: Backend
    checkpointer: Checkpointer
    guard: StepGuard
    stage: Stage
    step: int
    next_sample: int
    peak_flops: float | None
    metrics: MetricsLog | None
    progress: TrainingProgress | None
    adapters: dict[str, Any] = field(default_factory=dict)
    """`Stage.adapters` as the run began."""
    checkpoint_pause: float | None = None
    """Seconds for which the last save held training up, until a record has told."""


def open_data(config: RunConfig) -> Data:
    """Make the token files if the configuration says how, open and check them, and lay out the plan.

    Raises:
        DataError, ConfigError: whatever is wrong with them, by file and key.
    """
    prefixes, heldout_prefixes = config.data.sources, config.data.heldout
    if config.corpus is not None:
        prepared = prepare_corpus(config.corpus)
        prefixes, heldout_prefixes = prepared.sources, prepared.heldout
    tokenizer = tokenizer_of(config)
    vocab_size = config.model.selected.vocab_size
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        raise ConfigError(
            f"model vocab_size: {vocab_size} is smaller than the {tokenizer.vocab_size} pieces of "
            f"{tokenizer.model_path}"
        )
    begins = newest_checkpoint(Path(config.run.dir) / "checkpoints") is None
    if tokenizer is not None and config.run.init_from is not None and begins:
        refuse_other_tokenizer(Path(config.run.init_from), tokenizer)
    cache = cache_of(config)
    sources = {name: open_source(prefix, cache) for name, prefix in prefixes.items()}
    heldout = [open_whole(heldout_prefixes[name], cache) if name in heldout_prefixes else None for name in prefixes]
    files = list(sources.values())
    for file in (*files, *heldout):
        if file is not None:
            file.check(tokenizer.hash if tokenizer else files[0].manifest.tokenizer_hash, vocab_size)
    return Data(files, heldout, make_plan(config, sources), tokenizer)


def open_prepared(config: RunConfig) -> dict[str, Source]:
    """The training sources of a run by name, for looking at them: their token files must exist, and nothing is made.

    Raises:
        DataError, ConfigError: the configuration, or a token file.
    """
    config.validate(world_size=1)
    prefixes = token_prefixes(config.corpus) if config.corpus is not None else config.data.sources
    cache = cache_of(config)
    return {name: open_source(prefix, cache) for name, prefix in prefixes.items()}


def tokenizer_of(config: RunConfig) -> TextTokenizer | None:
    """The tokenizer of a run whose corpus has been prepared; None where the configuration names none.

    Raises:
        DataError: it is missing or damaged.
    """
    path = tokenizer_path(config.corpus) if config.corpus is not None else config.data.tokenizer
    return open_tokenizer(path) if path else None


def cache_of(config: RunConfig) -> CacheFolder | None:
    """Where chunks of remote sources are kept; None where the configuration names no folder."""
    return CacheFolder(config.data.cache, config.data.cache_bytes) if config.data.cache else None


def make_plan(config: RunConfig, sources: dict[str, Source]) -> Plan:
    """The plan of a run over its sources by name.

    Raises:
        DataError, ConfigError: the sources cannot give what the blocks ask for.
    """
    data = config.data
    seq_lens = {block.seq_len or data.seq_len for block in data.blocks} if data.packing == "best_fit" else set()
    facts = [
        SourceFacts.of(name, file.manifest, {seq_len: packed_windows(file, seq_len).samples for seq_len in seq_lens})
        for name, file in sources.items()
    ]
    return Plan(facts, data.blocks, data.seq_len, config.run.seed, samples_needed(config), data.packing)


def samples_needed(config: RunConfig) -> int:
    """Samples of the whole run, which size a last block without a budget.

    A run that goes on, perhaps with another global batch, needs what it has consumed and what its steps to come take.
    But once such a block has begun it stays as large as it was: its order depends on its size.

    Raises:
        CheckpointError: the newest checkpoint cannot be read.
    """
    checkpoint = newest_checkpoint(Path(config.run.dir) / "checkpoints")
    state = load_state(checkpoint) if checkpoint is not None else None
    if state is None or state.step > config.train.steps:
        return config.train.steps * config.train.global_batch_size
    if config.data.blocks[-1].tokens is not None:
        return state.next_sample  # nothing to size; `check_run_folder` compares what is left with what is needed
    blocks = state.plan["blocks"]
    with contextlib.suppress(AttributeError, IndexError, KeyError, TypeError):  # of a release that held it otherwise
        if len(blocks) == len(config.data.blocks) and blocks[-1]["first_sample"] < state.next_sample:
            return blocks[-1]["first_sample"] + sum(blocks[-1]["quotas"].values())
    return state.next_sample + (config.train.steps - state.step) * config.train.global_batch_size


def check_before_data(config: RunConfig, world_size: int) -> None:
    """Whatever can be found wrong before text is tokenised, which may take hours.

    Raises:
        MindLLMError: the configuration, the run folder or `run.init_from`.
    """
    config.validate(world_size)
    if config.distributed.backend == "deepspeed":
        check_deepspeed(config.distributed, config.optim)
    folder = Path(config.run.dir)
    try:
        folder.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"run.dir: '{folder}' cannot be opened ({getattr(error, 'strerror', error)}); choose another"
        ) from error
    if not config.run.dir or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"run.dir: '{config.run.dir}' is not a folder; choose another")
    for name, is_kind, kind in ((METRICS_FILE, Path.is_file, "file"), ("checkpoints", Path.is_dir, "folder")):
        if (folder / name).exists() and not is_kind(folder / name):
            raise ConfigError(f"run.dir: {folder / name} is not a {kind}; move it away, or choose another run.dir")
    checkpoint = newest_checkpoint(folder / "checkpoints")
    if checkpoint is not None and config.run.resume == "never":
        raise CheckpointError(f"{checkpoint}: run.dir holds a run already; choose another, or set run.resume to auto")
    if checkpoint is None and config.run.init_from is not None:
        find_checkpoint(Path(config.run.init_from))
        if config.corpus is not None and config.corpus.tokenizer_base is not None:
            base = open_tokenizer(tokenizer_file(config.corpus.tokenizer_base))
            refuse_other_tokenizer(Path(config.run.init_from), base)


def select_implementations(config: RunConfig) -> None:
    """What operators and attention run on, for this process. Comes before anything touches the GPU.

    Raises:
        ConfigError: this machine has not what is asked for.
    """
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # every operator writes all that it allocates
    if config.train.compile:
        check_compiler()
    select_kernels(config.kernels)
    select_attention(config.attention, config.deterministic)


def check_run_folder(config: RunConfig, data: Data) -> Path | None:
    """The checkpoint to go on from, or None for a new run.

    Raises:
        CheckpointError: the checkpoint does not fit the configuration.
    """
    checkpoint = newest_checkpoint(Path(config.run.dir) / "checkpoints")
    if checkpoint is None:
        return None
    state = load_state(checkpoint)
    if state.step > config.train.steps:
        raise CheckpointError(
            f"{checkpoint}: the run is at step {state.step}, beyond train.steps = {config.train.steps}; raise it, or "
            "choose another run.dir"
        )
    samples_left = data.plan.samples - state.next_sample
    more = (config.train.steps - state.step) * config.train.global_batch_size
    if more > samples_left:
        last = data.plan.blocks[-1]
        size = f", and give the one before it its size, tokens: {last.samples * last.seq_len}"
        raise CheckpointError(
            f"{checkpoint}: train.steps needs {more:,} samples more and the plan has {max(0, samples_left):,} left; "
            f"append a block to data.blocks{size if config.data.blocks[-1].tokens is None else ''}"
        )
    difference = data.plan.changed_past(state.plan, state.next_sample)
    if difference:
        raise CheckpointError(
            f"{checkpoint}: data already consumed has changed: {difference}; restore it, or start anew in another "
            "run.dir (to train longer than planned, append a block to data.blocks)"
        )
    if state.tokenizer_hash != data.sources[0].manifest.tokenizer_hash:
        raise CheckpointError(
            f"{checkpoint}: of another tokenizer than the data; restore that, or choose another run.dir"
        )
    return checkpoint


def refuse_different_data(data: Data, world: World) -> None:
    """Compare the plans of all ranks, which is what their token files make them.

    Raises:
        DataError: on all ranks, if some rank has another plan than rank 0: hosts that see different files.
    """
    ours = int(data.plan.hash, 16) >> 1  # 63 bits of it
    different = ranks_with_another_value(ours)
    if different:
        raise DataError(
            f"data.sources: {spans(different)} of {world.world_size} and rank 0 see different token files; give all "
            "hosts the same ones (tools/plan_data.py shows a plan's hash)"
        )


def build_run(config: RunConfig, data: Data, checkpoint: Path | None, world: World, stage: Stage) -> Run:
    """Build the network and its optimizer, fill them from `checkpoint`, and open the run folder."""
    torch.manual_seed(config.run.seed + world.rank)  # torch draws a seed of its own else; a checkpoint replaces it
    dtype = DTYPES[config.train.precision]
    adapters = stage.adapters(config)
    if checkpoint is not None:
        refuse_other_adapters(checkpoint, adapters)
    source = config.run.init_from if checkpoint is None else None
    model = build_model(config, dtype, world, adapters.get("base", source))
    stage.prepare_model(model, config)
    loader = stage.open_loader(config, data, world)
    apply_layer_options(model, config.train.activation_checkpointing, compiled=False)  # the step on record must fit
    backend = build_backend(config, model, loader, world, stage)
    apply_layer_options(model, config.train.activation_checkpointing, config.train.compile)
    checkpointer = build_checkpointer(config, backend, world)
    state = checkpointer.load(checkpoint, config.model) if checkpoint else None
    guard = StepGuard(config.faults.sigma, world.device)
    guard.load_state(state.extra.get("guard", []) if state else [])
    step = state.step if state else 0
    open_run_folder(config, data, world, stage)
    return Run(
        config=config,
        world=world,
        data=data,
        loader=loader,
        heldout=stage.heldout_batches(config, data, world),
        model=model,
        backend=backend,
        checkpointer=checkpointer,
        guard=guard,
        stage=stage,
        step=step,
        next_sample=state.next_sample if state else 0,
        peak_flops=peak_flops(world.device, dtype),
        adapters=adapters,
        metrics=open_metrics(config, step) if world.is_first else None,
        progress=TrainingProgress(step, config.train.steps) if world.is_first else None,
    )


def build_model(config: RunConfig, dtype: torch.dtype, world: World, source: str | None) -> Network:
    """The network with its initial weights: drawn from the seed, or another run's; a checkpoint will replace either."""
    if source is None:
        return config.model.build(device=world.device, dtype=dtype, seed=config.run.seed)
    return initial_weights(Path(source), config.model, config.run.seed, world.device).to(dtype)


def refuse_other_adapters(checkpoint: Path, adapters: dict[str, Any]) -> None:
    """Compare what a checkpoint leaves out with what the run to go on does. The place of the base may have changed.

    Raises:
        CheckpointError: it is of tuning of another kind, or of another base.
    """
    saved = load_state(checkpoint).adapters
    theirs, ours = ({key: value for key, value in side.items() if key != "base"} for side in (saved, adapters))
    difference = first_difference(theirs, ours, "adapters")
    if difference:
        base = f" (of {saved['base']})" if saved else ""
        raise CheckpointError(
            f"{checkpoint}{base}: {difference}; restore tuning.lora and run.init_from, or choose another run.dir"
        )


def build_backend(config: RunConfig, model: Network, loader: Loader, world: World, stage: Stage) -> Backend:
    """What keeps the replicas equal and updates them: DeepSpeed, or ours, laid out by the course of one step over real
    samples."""
    wire = config.train.precision if config.distributed.wire == "auto" else config.distributed.wire
    if config.distributed.backend == "deepspeed":
        return DeepSpeedZero1(model, world, config.optim, config.distributed, DTYPES[wire])
    batch = loader.read(np.arange(config.train.micro_batch_size)).to(world.device)
    order = record_execution_order(model, lambda: stage.losses(model, batch, grad_scale=None).values.sum())
    return Zero1(model, world, config.optim, config.distributed, DTYPES[wire], order)


def build_checkpointer(config: RunConfig, backend: Backend, world: World) -> Checkpointer:
    """What saves the run, and loads it."""
    return Checkpointer(
        Path(config.run.dir) / "checkpoints",
        backend,
        world,
        config.train.keep_checkpoints,
        config.train.keep_every,
        config.distributed.timeout_minutes,
    )


def open_run_folder(config: RunConfig, data: Data, world: World, stage: Stage) -> None:
    """Write the resolved configuration and the tokenizer on rank 0, so that the folder explains and restarts itself.

    Raises:
        ConfigError: on all ranks, if rank 0 cannot write there.
    """
    folder = Path(config.run.dir)
    failure = None
    if world.is_first:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / CONFIG_FILE, config_to_yaml(config).encode())
            record_environment(folder, world)
            if data.tokenizer is not None:
                write_atomically(folder / TOKENIZER_FILE, data.tokenizer.model_path.read_bytes())
            stage.write_run_files(folder)
        except (OSError, DataError) as error:
            failure = ConfigError(f"run.dir: cannot write to {folder} ({error})")
    raise_together(failure, f"run.dir: rank 0 cannot write to {folder}")


def open_metrics(config: RunConfig, step: int) -> MetricsLog:
    """The run's metrics, cut back to `step`."""
    return MetricsLog(Path(config.run.dir), step, config.train.tensorboard, config.train.wandb_project, asdict(config))


def checkpoint_state(run: Run) -> CheckpointState:
    """What tells where the run is, for a checkpoint after `run.step` steps."""
    return CheckpointState(
        step=run.step,
        next_sample=run.next_sample,
        model=asdict(run.config.model),
        plan=run.data.plan.state(),
        tokenizer_hash=run.data.sources[0].manifest.tokenizer_hash,
        extra={"guard": run.guard.state()},
        adapters=run.adapters,
    )
