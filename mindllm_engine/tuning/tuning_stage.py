"""What tuning does in its own way in the one training loop: LoRA's additions, and a run folder that tells of it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mindllm_engine.command_line import config_to_yaml
from mindllm_engine.corpus.chat_template import ChatTemplate
from mindllm_engine.data.atomic_files import write_atomically
from mindllm_engine.errors import ConfigError
from mindllm_engine.models import Network
from mindllm_engine.models.lora import add_lora
from mindllm_engine.training.checkpoint import identity, load_state
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.stage import Stage
from mindllm_engine.training.weights import find_checkpoint, model_config
from mindllm_engine.tuning.config import TuneConfig

TUNING_FILE = "tuning.yaml"


class TuningStage(Stage):
    """Next-token prediction on what the masks of the data leave, of all weights or of LoRA's additions."""

    def __init__(self, config: TuneConfig, template: ChatTemplate) -> None:
        self.config = config
        self.template = template

    def adapters(self, config: RunConfig) -> dict[str, Any]:
        """See `Stage.adapters`.

        Raises:
            ConfigError: a larger vocabulary, whose new rows would stay as they were drawn.
        """
        lora = self.config.tuning.lora
        if lora is None:
            return {}
        base = base_checkpoint(config)
        theirs = model_config(load_state(base).model).selected.vocab_size
        if theirs != config.model.selected.vocab_size:
            raise ConfigError(
                f"tuning.lora: the embedding is frozen, and run.init_from has {theirs} rows of it, the model "
                f"{config.model.selected.vocab_size}: new ones would never be learnt; tune all weights first"
            )
        return {"base": str(base.resolve()), "base_hash": identity(base), **asdict(lora)}

    def prepare_model(self, model: Network, config: RunConfig) -> None:
        """See `Stage.prepare_model`."""
        if self.config.tuning.lora is not None:
            add_lora(model, self.config.tuning.lora, config.run.seed)

    def write_run_files(self, folder: Path) -> None:
        """See `Stage.write_run_files`."""
        write_atomically(folder / TUNING_FILE, config_to_yaml(self.config).encode())
        self.template.save(folder)


def base_checkpoint(config: RunConfig) -> Path:
    """The checkpoint that a tuning starts from. Raises ConfigError where `run.init_from` names none."""
    if config.run.init_from is None:
        raise ConfigError("run.init_from: missing; LoRA and DPO need the network that they start from all along")
    return find_checkpoint(Path(config.run.init_from))
