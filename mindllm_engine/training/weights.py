"""Networks from the weights in checkpoints: to start another run from (transfer), or to use."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from mindllm_engine.corpus.open_tokenizer import TextTokenizer, first_changed_id, open_tokenizer
from mindllm_engine.errors import CheckpointError, DataError
from mindllm_engine.models import ModelConfig, Network
from mindllm_engine.models.extend_vocabulary import extend_vocabulary
from mindllm_engine.models.lora import LoraConfig, add_lora, merge_lora
from mindllm_engine.training.checkpoint import (
    STATE_FILE,
    CheckpointState,
    checkpoint_of,
    first_difference,
    identity,
    load_state,
    newest_checkpoint,
)
from mindllm_engine.training.checkpoint_storage import Parts, PartSavePlanner, ShardWriter, first_failure, read_alone

TOKENIZER_FILE = "tokenizer.model"


def find_checkpoint(source: Path) -> Path:
    """The checkpoint `source` is, or the newest one of the run folder it is.

    Raises:
        CheckpointError: it is neither.
    """
    if (source / STATE_FILE).exists():
        return source
    checkpoint = newest_checkpoint(source / "checkpoints")
    if checkpoint is None:
        raise CheckpointError(
            f"{source}: holds no checkpoint; expected a run folder with checkpoints/ or one of its checkpoints"
        )
    return checkpoint


def load_model(source: Path, device: torch.device) -> tuple[Network, ModelConfig]:
    """The network of a run folder or checkpoint with its fp32 master weights, in evaluation mode. LoRA's additions have
    been added to the matrices."""
    model, config = load_adapted(source, device)
    merge_lora(model)
    return model, config


def load_adapted(source: Path, device: torch.device) -> tuple[Network, ModelConfig]:
    """`load_model`, with LoRA's additions beside the frozen matrices where the checkpoint is of such a tuning.

    Raises:
        CheckpointError: there is none, it is damaged, or the checkpoint that its additions belong to has gone.
    """
    checkpoint = find_checkpoint(source)
    state = load_state(checkpoint)
    if state.adapters:
        model = load_base(checkpoint, state, device)
        add_lora(model, LoraConfig(state.adapters["rank"], state.adapters["alpha"]), seed=0)
    else:
        model = model_config(state.model).build(device=device, dtype=torch.float32, seed=0)
    read_alone(
        checkpoint,
        state,
        {
            f"master/{name}": Parts(parameter.numel(), parameter.dtype, {0: parameter.detach().view(-1)})
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        },
    )
    return model.eval(), model_config(state.model)


def load_base(checkpoint: Path, state: CheckpointState, device: torch.device) -> Network:
    """The network that the additions in `checkpoint` belong to. Raises CheckpointError where it has gone or changed."""
    base = Path(state.adapters["base"])
    if not (base / STATE_FILE).exists() or identity(base) != state.adapters["base_hash"]:
        raise CheckpointError(
            f"{checkpoint}: holds LoRA's additions to {base}, which is missing or has changed; restore it, or use "
            "merged/ of the run"
        )
    return load_model(base, device)[0]


def save_weights(model: Network, folder: Path, state: CheckpointState) -> Path:
    """Write the fp32 parameters of `model` as a checkpoint in `folder`, without an optimizer: to load, not to go on
    from. By one process. Returns the checkpoint. Raises CheckpointError if it cannot be written."""
    writer = ShardWriter(rank=0, keep=0, keep_every=0)
    writer.checkpoint, writer.state = checkpoint_of(folder, state.step), state
    parts = {
        f"master/{name}": Parts(parameter.numel(), torch.float32, {0: parameter.detach().float().cpu().view(-1)})
        for name, parameter in model.named_parameters()
    }
    try:
        dcp.save(parts, storage_writer=writer, planner=PartSavePlanner(), no_dist=True)
    except CheckpointException as failure:
        raise first_failure(failure) from None
    return writer.checkpoint


def initial_weights(source: Path, config: ModelConfig, seed: int, device: torch.device) -> Network:
    """A network of `config` that starts from another run's weights; its vocabulary may be larger than theirs.

    Raises:
        CheckpointError: the networks differ in more than the size of the vocabulary, or theirs is the larger one.
    """
    model, saved = load_model(source, device)
    vocab_size = config.selected.vocab_size
    wanted = replace_vocabulary(config, saved.selected.vocab_size)
    difference = first_difference(asdict(saved), asdict(wanted), "model")
    if difference or saved.selected.vocab_size > vocab_size:
        reason = difference or f"its vocabulary of {saved.selected.vocab_size} exceeds model vocab_size = {vocab_size}"
        raise CheckpointError(f"run.init_from: {source} does not fit this model: {reason}")
    if vocab_size > saved.selected.vocab_size:
        extend_vocabulary(model, vocab_size, seed)
    return model.train()


def refuse_other_tokenizer(source: Path, tokenizer: TextTokenizer) -> None:
    """Compare the tokenizer that the weights in `source`, a run folder or checkpoint, were trained with.

    A run without a tokenizer in its folder says nothing, and is taken as it is.

    Raises:
        CheckpointError: `tokenizer` neither is theirs nor extends it, so that the embeddings would mean nothing.
    """
    checkpoint = find_checkpoint(source)
    theirs = checkpoint.parent.parent / TOKENIZER_FILE
    if not theirs.is_file():
        return
    changed = first_changed_id(tokenizer, open_tokenizer(theirs))
    if changed is not None:
        raise CheckpointError(
            f"run.init_from: {source} was trained with another tokenizer than {tokenizer.model_path}: id {changed} "
            "differs; extend its tokenizer (corpus.tokenizer_base), or start from another run"
        )


def model_config(saved: dict[str, Any]) -> ModelConfig:
    """The configuration that a checkpoint's dictionary stands for."""
    return ModelConfig.from_dict(saved)


def replace_vocabulary(config: ModelConfig, vocab_size: int) -> ModelConfig:
    """The same configuration with another `vocab_size`."""
    return ModelConfig.of(replace(config.selected, vocab_size=vocab_size))


def load_model_for_inference(run_dir: str) -> tuple[Network, TextTokenizer]:
    """The newest network of a run folder on the best device here, and the tokenizer it was trained with.

    Raises CheckpointError and DataError as `load_model`, `refuse_nan` and `tokenizer_of`.
    """
    checkpoint = find_checkpoint(Path(run_dir))
    tokenizer = tokenizer_of(checkpoint)
    model, _ = load_model(checkpoint, best_device())
    refuse_nan(model, checkpoint)
    return model, tokenizer


def tokenizer_of(checkpoint: Path) -> TextTokenizer:
    """The tokenizer in the run folder of a checkpoint.

    Raises:
        DataError: it is missing or damaged, or another one than that of the data the network was trained on.
    """
    tokenizer = open_tokenizer(checkpoint.parent.parent / TOKENIZER_FILE)
    wanted = load_state(checkpoint).tokenizer_hash
    if tokenizer.hash != wanted:
        raise DataError(
            f"{tokenizer.model_path}: is not the tokenizer of {checkpoint}: its hash is {tokenizer.hash}, and that of "
            f"the data the network was trained on {wanted}; put the run's own tokenizer there"
        )
    return tokenizer


def refuse_nan(model: Network, checkpoint: Path) -> None:
    """Raises CheckpointError where weights are NaN or infinite: comparisons of NaN would pass for answers."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise CheckpointError(
                f"{checkpoint}: {name} holds numbers that are NaN or infinite, so that it can answer nothing; take an "
                "earlier checkpoint"
            )


def best_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
