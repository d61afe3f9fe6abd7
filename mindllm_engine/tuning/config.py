"""The configuration of a tuning: a run's, and the records that it learns from. The one schema of `tools/tune.py`."""

import math
from dataclasses import dataclass, field
from typing import Literal

from mindllm_engine.corpus.chat_template import TemplateConfig
from mindllm_engine.corpus.tokenize import check_source_name
from mindllm_engine.errors import ConfigError
from mindllm_engine.models import ModelConfig
from mindllm_engine.models.lora import LoraConfig
from mindllm_engine.training.config import RunConfig


@dataclass
class RecordsConfig:
    """One file of records: a source of the plan (`data.blocks` mixes them by weight, language or size)."""

    path: str
    """A .jsonl, .jsonl.gz or .jsonl.zst file of instruction/input/output or chat records (tuning/records.py). `~` and
    environment variables such as ${MINDLLM_DATA} are expanded."""
    lang: str = ""
    """The language, such as zh or en, for plans that mix by language."""


@dataclass
class DpoConfig:
    """Direct preference optimisation (arXiv 2305.18290)."""

    beta: float = 0.1
    """How dearly the network pays for leaving the reference: rewards are beta times differences of log-probabilities
    (nats)."""
    label_smoothing: float = 0.0
    """The share of pairs taken to be the wrong way round (conservative DPO); from 0 to below 0.5."""

    def validate(self) -> None:
        """Raises `ConfigError` naming the first impossible value."""
        if not 0 < self.beta < math.inf:
            raise ConfigError(f"tuning.dpo.beta: {self.beta} must be above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"tuning.dpo.label_smoothing: {self.label_smoothing} must lie in [0, 0.5)")


@dataclass
class TuningConfig:
    """What is learnt."""

    records: dict[str, RecordsConfig]
    """The sources by name; plans and metrics call them by it."""
    dir: str
    """Folder for the token files made of the records, which later runs use again: each in a folder named by a
    fingerprint of the records, the template, the tokenizer and the settings."""
    template: TemplateConfig = field(default_factory=TemplateConfig)
    """What stands around the messages."""
    heldout: float = 0.01
    """Share of the records of each source that is never trained on, for the held-out loss; equal records fall on the
    same side."""
    bad_records: Literal["drop", "refuse"] = "drop"
    """Of records with nothing to learn from (no or an empty response, no JSON ...): `drop` counts and reports them,
    `refuse` ends with the first."""
    long_records: Literal["drop", "cut"] = "drop"
    """Of records with more than data.seq_len + 1 tokens: `drop` leaves them out, `cut` shortens the end of the longest
    question (or system message), never an answer: one cut short would teach to stop amid a sentence, or never. Either
    is counted and reported; a record whose answers alone are too long is dropped in any case."""
    lora: LoraConfig | None = None
    """Train low-rank additions alone (LoRA); empty to train all weights."""
    dpo: DpoConfig | None = None
    """Learn which of two answers is preferred (DPO) from records of pairs; empty to learn answers."""
    tokenizer: str | None = None
    """The tokenizer's file; by default that of the run that `run.init_from` lies in. It must be the one that the
    network was trained with."""

    def validate(self) -> None:
        """Raises `ConfigError` naming the first impossible value."""
        if not self.records:
            raise ConfigError("tuning.records is empty; name one file of records at least")
        for name in self.records:
            check_source_name(name)
        if not 0 <= self.heldout < 1:
            raise ConfigError(f"tuning.heldout: {self.heldout} is a share, from 0 to below 1")
        self.template.validate()
        if self.lora is not None:
            self.lora.validate()
        if self.dpo is not None:
            self.dpo.validate()


@dataclass(kw_only=True)
class TuneConfig(RunConfig):
    """A tuning: a run whose data are made of records, in samples of whole records (`data.packing` is best_fit)."""

    tuning: TuningConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network; by default that of `run.init_from`."""

    def validate_tuning(self) -> None:
        """Raises `ConfigError` for what a tuning cannot have; the rest is `validate`'s."""
        self.tuning.validate()
        for key, value in (
            ("corpus", self.corpus),
            ("data.sources", self.data.sources),
            ("data.heldout", self.data.heldout),
        ):
            if value:
                raise ConfigError(f"{key}: a tuning makes its token files of tuning.records; leave the key out")
        if self.data.tokenizer is not None:
            raise ConfigError("data.tokenizer: give tuning.tokenizer, or leave it out for that of run.init_from")
