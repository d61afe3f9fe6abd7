"""A Transformers folder as a run: any GPT-Neo checkpoint, or what `export_run` wrote.

config.yaml                 the network alone: give data and training, and start from it with run.init_from
tokenizer.model             its tokenizer.json (or the run's own, of a folder that `export_run` wrote)
chat_template.json          of a tuned run that `export_run` wrote
checkpoints/step_00000000   the weights in fp32, without an optimizer
"""

import contextlib
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import tokenizers
import torch
import yaml

from mindllm_engine.corpus.byte_level_tokenizer import ByteLevelTokenizer
from mindllm_engine.corpus.chat_template import TEMPLATE_FILE, load_template
from mindllm_engine.corpus.extend_byte_level import from_vocab_and_merges
from mindllm_engine.corpus.open_tokenizer import TextTokenizer, open_tokenizer
from mindllm_engine.data.atomic_files import cannot_write
from mindllm_engine.errors import CheckpointError, DataError
from mindllm_engine.evaluation import mindllm_checkpoint
from mindllm_engine.evaluation.export.export_run import RUN_FILES
from mindllm_engine.evaluation.export.tensor_files import read_json, read_tensors
from mindllm_engine.evaluation.export.tokenizer_json import tokenizer_json
from mindllm_engine.evaluation.gpt_neo_checkpoint import load_hf_checkpoint
from mindllm_engine.models import ModelConfig, Network
from mindllm_engine.training import weights
from mindllm_engine.training.checkpoint import CheckpointState, checkpoint_of
from mindllm_engine.training.setup import CONFIG_FILE
from mindllm_engine.training.weights import TOKENIZER_FILE


def import_checkpoint(folder: Path, out: Path) -> ModelConfig:
    """Write the network and tokenizer of a Transformers folder to the run folder `out`, all or nothing.

    `run.init_from`, generation, evaluation and export take it. The weights come back bit for bit: fp32 holds bf16 and
    fp16. At most twice the network in fp32 is in memory.

    Raises:
        CheckpointError: another architecture; a file that is missing or damaged.
        DataError: no tokenizer, or one with more tokens than the network; `out` is not empty or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is there already and not empty; choose another folder, or remove it")
    model = _load(folder).float()
    config = ModelConfig.of(model.config)
    staged = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        staged.mkdir(parents=True)
        tokenizer = _copy_tokenizer(folder, staged)
        if (staged / TEMPLATE_FILE).exists():
            load_template(folder / RUN_FILES, tokenizer)  # before anything is tuned or asked by it
        if tokenizer.vocab_size > model.config.vocab_size:
            raise DataError(
                f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens, and its network only "
                f"{model.config.vocab_size}: they do not belong together"
            )
        (staged / CONFIG_FILE).write_text(_config_file(config), encoding="utf-8")
        save_weights(model, config, tokenizer.hash, staged / "checkpoints")
        staged.rename(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(staged)
    return config


def _load(folder: Path) -> Network:
    config = read_json(folder / "config.json")
    if config.get("model_type") == "gpt_neo":
        return load_hf_checkpoint(folder)
    if config.get("model_type") != "mindllm":
        raise CheckpointError(
            f"{folder}/config.json is of model_type {config.get('model_type')!r}; gpt_neo and mindllm can be imported"
        )
    model = mindllm_checkpoint.config_from_hf(config, folder).build(dtype=torch.float32, seed=0)
    mindllm_checkpoint.from_hf_state_dict(model, read_tensors(folder))
    return model


def _copy_tokenizer(folder: Path, out: Path) -> TextTokenizer:
    """The run's own tokenizer and template where there are any; else tokenizer.json, or GPT-2's two files as one."""
    own = folder / RUN_FILES
    if (own / TEMPLATE_FILE).exists():
        shutil.copyfile(own / TEMPLATE_FILE, out / TEMPLATE_FILE)
    target = out / TOKENIZER_FILE
    for source in (own / TOKENIZER_FILE, folder / "tokenizer.json"):
        if source.exists():
            found = open_tokenizer(source)  # so that what is wrong is said of the file the user has
            _refuse_two_tokenizers(folder, found)
            shutil.copyfile(source, target)
            return open_tokenizer(target)
    if not (folder / "vocab.json").exists():
        raise DataError(f"{folder}: has no tokenizer.json, nor vocab.json and merges.txt; save its tokenizer there")
    target.write_text(from_vocab_and_merges(folder).to_str(), encoding="utf-8")
    return ByteLevelTokenizer(target)


def _refuse_two_tokenizers(folder: Path, own: TextTokenizer) -> None:
    """Raises DataError where a folder's tokenizer.json, which the weights were used with since, has other tokens."""
    path = folder / "tokenizer.json"
    if own.model_path == path or not path.exists():
        return
    theirs = tokenizers.Tokenizer.from_buffer(tokenizer_json(own, for_chats=False)).get_vocab()
    open_tokenizer(path)  # says what is wrong with it
    if tokenizers.Tokenizer.from_file(str(path)).get_vocab() != theirs:
        raise DataError(
            f"{own.model_path}: is not the tokenizer of {path}, which has other tokens; put the right one there, or "
            f"remove {own.model_path.parent} so that tokenizer.json is taken"
        )


def _config_file(config: ModelConfig) -> str:
    """The configuration of the network, to be completed by that of a run."""
    network = {name: sizes for name, sizes in asdict(config).items() if sizes is not None}
    return (
        "# Imported by tools/import_hf.py: weights alone. Start a run from them with run.init_from.\n"
        + yaml.safe_dump({"model": network}, sort_keys=False)
    )


def save_weights(model: Network, config: ModelConfig, tokenizer_hash: str, folder: Path) -> None:
    """Write a checkpoint of step 0 that holds master weights only to the folder of a run's checkpoints.

    Raises CheckpointError if it cannot be written.
    """
    state = CheckpointState(step=0, next_sample=0, model=asdict(config), plan={}, tokenizer_hash=tokenizer_hash)
    try:
        weights.save_weights(model, folder, state)
    except CheckpointError as error:
        where = checkpoint_of(folder, state.step)
        raise CheckpointError(f"{where}: cannot be written ({error}); free space, or write elsewhere") from error
