"""The configuration of a run: the one schema of `tools/pretrain.py`, and the checks that need no data."""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from mindllm_engine.corpus.prepare import CorpusConfig
from mindllm_engine.data.plan import BlockConfig, Packing, SourceFacts
from mindllm_engine.data.shares import check_blocks
from mindllm_engine.distributed.backend import DistributedConfig
from mindllm_engine.errors import ConfigError
from mindllm_engine.models import ModelConfig
from mindllm_engine.models.activation_memory import ActivationCheckpointing
from mindllm_engine.optim.optimizer import OptimConfig
from mindllm_engine.training.profiling import ProfileConfig

# What a 64-bit generator takes, and what 64-bit sample numbers can hold with room for products.
MAX_SEED = 1 << 63
MAX_SAMPLES = 1 << 48


@dataclass
class RunSection:
    """The run as a whole."""

    dir: str
    """Run folder: config.yaml, metrics.jsonl, checkpoints/, tensorboard/, tokenizer.model."""
    seed: int = 1
    """Names the initial weights and the order of the data."""
    resume: Literal["auto", "never"] = "auto"
    """`auto` goes on from the newest checkpoint in `dir`, if there is one; `never` refuses a folder with
    checkpoints."""
    init_from: str | None = None
    """Run folder or checkpoint whose weights to start from (its optimizer and step are left behind). A larger
    `vocab_size` here extends its embeddings."""


@dataclass
class DataConfig:
    """What is read, in which order. Sources are made from text by the `corpus` section, or named here."""

    seq_len: int
    """Tokens in a sample, where a block does not say otherwise."""
    blocks: list[BlockConfig] = field(default_factory=lambda: [BlockConfig()])
    """The plan; a single block without a budget by default: all sources by size, shuffled."""
    packing: Packing = "contiguous"
    """How documents become samples: `contiguous` cuts the stream of documents; `best_fit` packs whole documents and
    cuts only those longer than a sample."""
    sources: dict[str, str] = field(default_factory=dict)
    """Name -> prefix of `.bin`, `.idx` and `.json` (as `tools/tokenize_corpus.py` writes them): a path, or a URL
    such as s3://bucket/corpus/en_web (needs the extra `[remote]`)."""
    heldout: dict[str, str] = field(default_factory=dict)
    """Name of a source -> prefix of its held-out documents."""
    verify: bool = False
    """Check each chunk of a local token file against its manifest before it is used for the first time in this run
    (those of remote files are always checked)."""
    cache: str | None = None
    """Folder for what is read from remote sources; all processes of a node share it."""
    cache_bytes: int | None = None
    """What the chunks in it may take: those used longest ago are deleted. Empty for no limit."""
    tokenizer: str | None = None
    """The SentencePiece model the token files were made with; checked against them."""


@dataclass
class TrainConfig:
    """The loop."""

    steps: int
    """Optimizer steps of the whole run; the schedule spans them."""
    global_batch_size: int
    """Samples a step, over all ranks."""
    micro_batch_size: int
    """Samples a rank takes through the network at a time."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Precision: bf16 (weights and activations, with fp32 master weights, gradients and statistics) or fp32."""
    time_limit_minutes: float | None = None
    """Save and end, as on SIGTERM, before this process has run for so long; room is left for a step and the save, as
    long as they have taken so far. The same command goes on from there."""
    stop_after: int | None = None
    """Save and end after this step, as a wall-clock limit would; the schedule is not shortened."""
    log_every: int = 1
    """Steps between records of the training loss."""
    eval_every: int = 0
    """Steps between evaluations of the held-out data, besides the first and last step; 0 for those only."""
    eval_tokens: int | None = None
    """Held-out tokens read a source, in rows of data.seq_len spread over its text; empty for all."""
    checkpoint_every: int = 0
    """Steps between checkpoints, besides the last step; 0 for that only."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints to keep; 0 for all."""
    keep_every: int = 0
    """Checkpoints of steps that are multiples of this are kept for ever; 0 for none."""
    activation_checkpointing: ActivationCheckpointing = "none"
    """Keep less for backward and compute it again there, with the same bits: `selective` norms, GeGLU and GELU (of
    MindLLM-3B's activations three tenths less, for a few per cent of time), `full` whole layers (a seventeenth is left,
    for a third more arithmetic)."""
    compile: bool = False
    """Train with layers compiled by `torch.compile`, attention apart. Evaluation runs as it is."""
    gc_every: int = 100
    """Steps between collections of Python's cyclic garbage, at the same step on all ranks; 0 leaves it to Python."""
    tensorboard: bool = True
    """Write the records to `dir`/tensorboard as well."""
    wandb_project: str | None = None
    """Write them to this Weights & Biases project as well (needs the extra `[wandb]`)."""


@dataclass
class FaultsConfig:
    """What a run survives by itself: bad steps, and weights that differ among ranks."""

    sigma: float = 6.0
    """A step whose loss or gradient norm lies more than this many standard deviations above the mean of the last 128
    accepted ones is skipped: weights and moments stay as they are. 0 skips only what is not finite."""
    roll_back_after: int = 5
    """After so many skipped steps in a row the newest checkpoint from before them is loaded again, and the run goes on
    with the data that follows; 0 never does."""
    max_roll_backs: int = 3
    """How often a run may go back to the same checkpoint before it ends with an error."""
    check_replicas_every: int = 0
    """Steps between comparisons of all ranks' weights by hash, which end the run where they differ; 0 for none."""

    def validate(self) -> None:
        """Raises `ConfigError` naming the first impossible value."""
        if not 0 <= self.sigma < math.inf:
            raise ConfigError(f"faults.sigma: {self.sigma} must be a finite number of at least 0")
        for name in ("roll_back_after", "max_roll_backs", "check_replicas_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"faults.{name}: {getattr(self, name)} must not be negative")


@dataclass
class RunConfig:
    """A pre-training run, from raw text (or token files) to weights."""

    run: RunSection
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    faults: FaultsConfig = field(default_factory=FaultsConfig)
    corpus: CorpusConfig | None = None
    kernels: Literal["auto", "triton", "reference"] = "auto"
    """What operators run on: Triton kernels, or their PyTorch references; `auto` is Triton on a GPU."""
    attention: Literal["auto", "flash_attention_3", "flash_attn", "varlen", "sdpa", "reference"] = "auto"
    """What attention runs on; `auto` is the fastest that is installed and serves the case, and the log says which."""
    deterministic: bool = False
    """Give the same bits in every run on the same machine, where that costs speed (attention's backward, cuBLAS). What
    is ours is deterministic in any case."""

    profile: ProfileConfig = field(default_factory=ProfileConfig)

    def validate(self, world_size: int) -> None:
        """Raises `ConfigError` naming the first key whose value is impossible, alone or with another."""
        self.model.validate()
        for section, names in (
            (self.train, ("steps", "global_batch_size", "micro_batch_size", "log_every", "stop_after", "eval_tokens")),
            (self.data, ("seq_len",)),
        ):
            for name in names:
                value = getattr(section, name)
                if value is not None and value < 1:
                    raise ConfigError(
                        f"{'data' if section is self.data else 'train'}.{name}: {value} must be at least 1"
                    )
        for name in ("eval_every", "checkpoint_every", "keep_checkpoints", "keep_every", "gc_every"):
            if getattr(self.train, name) < 0:
                raise ConfigError(f"train.{name}: {getattr(self.train, name)} must not be negative")
        step_unit = self.train.micro_batch_size * world_size
        if self.train.global_batch_size % step_unit:
            raise ConfigError(
                f"train.global_batch_size: {self.train.global_batch_size} is not a multiple of "
                f"train.micro_batch_size x ranks = {self.train.micro_batch_size} x {world_size}"
            )
        if not self.data.blocks:
            raise ConfigError("data.blocks: a plan needs one block at least")
        for number, block in enumerate(self.data.blocks):
            for entry in fields(block):
                if getattr(block, entry.name) is None and entry.default is not None:
                    raise ConfigError(
                        f"data.blocks[{number}].{entry.name}: null is no value; leave the key out instead"
                    )
        longest = self.model.selected.max_seq_len
        lengths = {f"data.blocks[{number}].seq_len": block.seq_len for number, block in enumerate(self.data.blocks)}
        for key, seq_len in ({"data.seq_len": self.data.seq_len} | lengths).items():
            if seq_len is not None and seq_len > longest:
                raise ConfigError(f"{key}: {seq_len} is longer than the model's max_seq_len = {longest}")
        if (self.corpus is None) == (not self.data.sources):
            raise ConfigError(
                "data.sources: name token files here, or the text they are made from under corpus (one of the two)"
            )
        if self.corpus is not None:
            self.validate_corpus(self.corpus)
        if not 0 <= self.run.seed < MAX_SEED:
            raise ConfigError(f"run.seed: {self.run.seed} must lie in [0, {MAX_SEED})")
        if self.train.steps * self.train.global_batch_size >= MAX_SAMPLES:
            raise ConfigError(f"train.steps: {self.train.steps} steps are beyond what can be counted")
        if self.data.cache_bytes is not None and self.data.cache_bytes < 1:
            raise ConfigError(
                f"data.cache_bytes: {self.data.cache_bytes} must be at least 1; leave it out for no limit"
            )
        if self.data.heldout is None or self.data.sources is None:
            raise ConfigError("data.sources and data.heldout: leave the key out where there are none, instead of null")
        named: dict[Path, str] = {}
        for name, prefix in self.data.sources.items():
            if not name or not f"{name}{prefix}".isprintable():
                raise ConfigError(f"data.sources: {name!r}: {prefix!r} is empty or cannot be printed; rename it")
            other = named.setdefault(Path(f"{prefix}.bin").resolve(), name)
            if other != name:
                raise ConfigError(f"data.sources: {other} and {name} are the same token file, {prefix}; keep one")
        unknown = sorted(set(self.data.heldout) - set(self.data.sources))
        if unknown:
            raise ConfigError(f"data.heldout: {unknown[0]} is not one of data.sources")
        if self.optim.master == "bf16_and_bits" and self.train.precision != "bf16":
            raise ConfigError(f"optim.master: bf16_and_bits needs train.precision bf16, got {self.train.precision}")
        if self.train.compile and self.train.activation_checkpointing == "selective":
            raise ConfigError(
                "train.activation_checkpointing: selective does nothing in compiled layers, where the compiler decides "
                "what to keep; take none or full with train.compile"
            )
        if self.optim.offload and self.distributed.backend == "deepspeed":
            raise ConfigError(
                "optim.offload: DeepSpeed offloads by distributed.deepspeed_config; leave one of them out"
            )
        self.profile.validate(world_size, self.train.steps)
        self.optim.validate()
        self.distributed.validate(world_size)
        self.faults.validate()
        if self.train.time_limit_minutes is not None and not 0 < self.train.time_limit_minutes < math.inf:
            raise ConfigError(f"train.time_limit_minutes: {self.train.time_limit_minutes} must be above 0")

    def validate_corpus(self, corpus: CorpusConfig) -> None:
        """What would be found wrong only after the text has been tokenised."""
        if corpus.tokenizer_vocab_size > self.model.selected.vocab_size:
            raise ConfigError(
                f"corpus.tokenizer_vocab_size: {corpus.tokenizer_vocab_size} is larger than the model's vocab_size = "
                f"{self.model.selected.vocab_size}"
            )
        if self.data.tokenizer is not None:
            raise ConfigError("data.tokenizer: the corpus section makes its own; remove one of the two")
        if corpus.sources:
            labels = [SourceFacts(name, text.lang, text.category, 0, 0, "") for name, text in corpus.sources.items()]
            check_blocks(self.data.blocks, labels, self.data.seq_len)
