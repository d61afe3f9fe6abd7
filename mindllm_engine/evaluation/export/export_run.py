"""A run as a folder that Transformers opens: weights, configuration, tokenizer, chat template, model card.

config.json, generation_config.json, model*.safetensors
tokenizer.json, tokenizer_config.json, chat_template.jinja (of a tuned run)
configuration_mindllm.py, modeling_mindllm.py (of a MindLLM; GPT-Neo is Transformers' own)
README.md                   the model card
mindllm/                    the run's own tokenizer.model and chat_template.json, for `import_checkpoint`
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mindllm_engine.corpus.chat_template import TEMPLATE_FILE, ChatTemplate, load_template
from mindllm_engine.corpus.open_tokenizer import TextTokenizer
from mindllm_engine.data.atomic_files import cannot_write
from mindllm_engine.errors import DataError
from mindllm_engine.evaluation import gpt_neo_checkpoint, mindllm_checkpoint
from mindllm_engine.evaluation.export.chat_jinja import chat_jinja
from mindllm_engine.evaluation.export.model_card import model_card
from mindllm_engine.evaluation.export.tensor_files import write_tensors
from mindllm_engine.evaluation.export.tokenizer_json import special_tokens, tokenizer_json
from mindllm_engine.models.gpt_neo import GPTNeo, to_hf_state_dict
from mindllm_engine.models.mindllm import MindLLM
from mindllm_engine.models.minicpm import MiniCPM
from mindllm_engine.training.checkpoint import flush_to_disk, load_state
from mindllm_engine.training.weights import TOKENIZER_FILE, find_checkpoint, load_model, refuse_nan, tokenizer_of

# In an exported folder: what the run had, as it had it.
RUN_FILES = "mindllm"

HF_CODE = Path(__file__).parent / "hf_code"


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        checkpoint: from which.
        parameters: of the network.
        padding_rows: of the vocabulary, behind those that the tokenizer has.
    """

    checkpoint: Path
    parameters: int
    padding_rows: int


def export_run(run: Path, out: Path, dtype: torch.dtype, show: Callable[[int], None]) -> Exported:
    """Write the newest network of a run folder (or one of its checkpoints) to `out` for Transformers, all or nothing.

    Args:
        dtype: to which the fp32 master weights are rounded: float32, bfloat16 or float16.
        show: called with the bytes of weights written so far.

    Raises:
        CheckpointError: `run` has no checkpoint, or a damaged one.
        DataError: the network is a MiniCPM; the tokenizer or the chat template is missing, not the checkpoint's or
        cannot be written in Transformers' format; `out` is not empty or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is there already and not empty; choose another folder, or remove it")
    checkpoint = find_checkpoint(run)
    folder = checkpoint.parent.parent
    state = load_state(checkpoint)
    tokenizer = tokenizer_of(checkpoint)
    template = load_template(folder, tokenizer) if (folder / TEMPLATE_FILE).exists() else None
    model, _ = load_model(checkpoint, torch.device("cpu"))
    if isinstance(model, MiniCPM):
        raise DataError(f"{checkpoint}: holds a MiniCPM network, and only MindLLM and GPT-Neo can be exported")
    refuse_nan(model, checkpoint)
    vocab_size = model.config.vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"{tokenizer.model_path}: has {tokenizer.vocab_size} tokens, and the network of {checkpoint} only "
            f"{vocab_size}; put the run's own tokenizer there"
        )
    parameters = model.num_parameters()
    padding_rows = vocab_size - tokenizer.vocab_size
    staged = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        staged.mkdir(parents=True)
        write_tokenizer(tokenizer, template, model.config.max_seq_len, staged)
        _write_model(model, tokenizer, template, dtype, staged, show)
        card = model_card(folder, state.step, model.config, parameters, padding_rows, dtype, template is not None)
        (staged / "README.md").write_text(card, encoding="utf-8")
        for path in staged.rglob("*"):
            flush_to_disk(path)
        staged.rename(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(staged)
    return Exported(checkpoint, parameters, padding_rows)


def write_tokenizer(
    tokenizer: TextTokenizer, template: ChatTemplate | None, max_seq_len: int, folder: Path
) -> dict[str, int]:
    """Write tokenizer.json, what Transformers wants beside it, and the run's own files.

    Returns the control symbols with their ids. Raises DataError, OSError.
    """
    converted = tokenizer_json(tokenizer, for_chats=template is not None)
    (folder / "tokenizer.json").write_bytes(converted)
    special = special_tokens(converted)
    name_of = {id: token for token, id in special.items()}
    config: dict[str, Any] = {
        # Llama's and GPT-2's classes build a tokenizer of their own from the file, in silence.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": name_of[tokenizer.bos_id],
        "eos_token": name_of[tokenizer.eos_id],
        "pad_token": name_of[pad_id(tokenizer, special)],
        "additional_special_tokens": [token for token in special if token not in ("<unk>", "<s>", "</s>")],
        "clean_up_tokenization_spaces": False,
        # Without token_type_ids, which 4.57 gives by default and GPT-Neo adds to its embeddings, in silence.
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_seq_len,
        "padding_side": "left",
        # "</s>" in a text is text, as to our own tokenizers. A chat template is rendered to text with symbols in it,
        # which must be read as such: there JOIN keeps messages apart from them (chat_jinja.py).
        "split_special_tokens": template is None,
    }
    if "<unk>" in special:
        config["unk_token"] = "<unk>"
    own = folder / RUN_FILES
    own.mkdir()
    shutil.copyfile(tokenizer.model_path, own / TOKENIZER_FILE)
    if template is not None:
        (folder / "chat_template.jinja").write_text(chat_jinja(template, special), encoding="utf-8")
        template.save(own)
    _write_json(folder / "tokenizer_config.json", config)
    return special


def pad_id(tokenizer: TextTokenizer, special: dict[str, int]) -> int:
    """What fills up batches: the unknown token, which no text gives, or else what ends documents."""
    return special.get("<unk>", tokenizer.eos_id)


def _write_model(
    model: MindLLM | GPTNeo,
    tokenizer: TextTokenizer,
    template: ChatTemplate | None,
    dtype: torch.dtype,
    folder: Path,
    show: Callable[[int], None],
) -> None:
    config, tensors = _for_transformers(model, dtype)
    ends = sorted(template.stop_ids) if template is not None else [tokenizer.eos_id]
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    _write_json(folder / "config.json", config | ids)
    generation: dict[str, Any] = ids | {
        "eos_token_id": ends,
        "pad_token_id": pad_id(tokenizer, special_tokens((folder / "tokenizer.json").read_bytes())),
    }
    if tokenizer.vocab_size < model.config.vocab_size:  # rows that stand for nothing are never generated
        generation["suppress_tokens"] = list(range(tokenizer.vocab_size, model.config.vocab_size))
    _write_json(folder / "generation_config.json", generation)
    if isinstance(model, MindLLM):
        for name in ("configuration_mindllm.py", "modeling_mindllm.py"):
            shutil.copyfile(HF_CODE / name, folder / name)
    write_tensors(folder, tensors, dtype, show)


def _for_transformers(model: MindLLM | GPTNeo, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the tensors by their names there."""
    if isinstance(model, GPTNeo):
        return gpt_neo_checkpoint.config_to_hf(model.config, dtype), to_hf_state_dict(model)
    return mindllm_checkpoint.config_to_hf(model.config, dtype), mindllm_checkpoint.to_hf_state_dict(model)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
