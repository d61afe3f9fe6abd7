"""A LoRA run as others take it: merged into a run folder of its own, and as peft's adapter.

`<run>/merged/` has config.yaml, tokenizer, chat_template.json and checkpoints/step_N: the network with its additions in
the matrices, added in fp32, for every tool that takes a run. `<run>/adapter/` has adapter_config.json and
adapter_model.safetensors: the additions alone, for peft on the exported network (GPT-Neo only).
"""

import copy
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import orjson
import torch
import yaml
from safetensors.torch import save
from torch import Tensor

from mindllm_engine.command_line import read_yaml
from mindllm_engine.corpus.chat_template import TEMPLATE_FILE
from mindllm_engine.data.atomic_files import cannot_write, write_atomically
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import CheckpointError, DataError
from mindllm_engine.models import Network
from mindllm_engine.models.gpt_neo import HF_LINEAR_NAMES, GPTNeo
from mindllm_engine.models.lora import LoraConfig, adaptable_layers, lora_parts, merge_lora
from mindllm_engine.training.checkpoint import CheckpointState, load_state
from mindllm_engine.training.setup import CONFIG_FILE
from mindllm_engine.training.weights import TOKENIZER_FILE, best_device, find_checkpoint, load_adapted, save_weights

MERGED, ADAPTER = "merged", "adapter"

# Tokens of held-out records whose logits are compared: the first so many of records cut to a length each, which bounds
# the memory for logits.
DRIFT_TOKENS, DRIFT_LENGTH = 1024, 256


@dataclass(frozen=True)
class MergeReport:
    """What merging did.

    Attributes:
        merged: the run folder made; adapter: peft's folder, or None.
        drift_max, drift_mean: of |merged logit - logit with additions|, over all logits of `tokens` held-out tokens.
    """

    merged: Path
    adapter: Path | None
    drift_max: float
    drift_mean: float
    tokens: int

    def __str__(self) -> str:
        drift = (
            f"logits drift by {self.drift_max:.2e} at most, {self.drift_mean:.2e} on average, over {self.tokens} "
            "held-out tokens"
            if self.tokens
            else "no records are at hand to measure the drift of logits on"
        )
        peft = f", peft's adapter in {self.adapter}" if self.adapter else ""
        return f"merged into {self.merged}{peft}; {drift}"


def merge_run(run: Path) -> MergeReport:
    """Merge the newest checkpoint of a LoRA run, or the one given, in fp32, into `<run>/merged`, and write
    `<run>/adapter`. Either folder appears whole, in the place of an earlier one.

    Raises:
        CheckpointError: the run is of no LoRA, or a checkpoint is missing or damaged.
        DataError: a folder cannot be written.
    """
    checkpoint = find_checkpoint(run)
    run = checkpoint.parents[1]
    state = load_state(checkpoint)
    if not state.adapters:
        raise CheckpointError(
            f"{checkpoint}: holds all weights, there is nothing to merge; give a run with tuning.lora"
        )
    model, _ = load_adapted(checkpoint, best_device())
    adapter = run / ADAPTER if isinstance(model, GPTNeo) else None
    if isinstance(model, GPTNeo):
        in_place_of(run / ADAPTER, lambda folder: write_adapter(model, state, folder))
    sequences = drift_sequences(run)
    before = logits_of(model, sequences)
    merge_lora(model)
    drift = [(a - b).abs() for a, b in zip(before, logits_of(model, sequences), strict=True)]
    in_place_of(run / MERGED, lambda folder: write_merged(run, model, state, folder))
    return MergeReport(
        merged=run / MERGED,
        adapter=adapter,
        drift_max=max((part.max().item() for part in drift), default=0.0),
        drift_mean=sum(part.double().sum().item() for part in drift) / max(1, sum(part.numel() for part in drift)),
        tokens=sum(len(part) for part in drift),
    )


def in_place_of(folder: Path, write: Callable[[Path], None]) -> None:
    """Give `folder` what `write` puts into another, in the place of what is there. Raises DataError."""
    staged, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        write(staged)
        if folder.exists():
            folder.rename(old)
        staged.rename(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        for leftover in (staged, old):
            shutil.rmtree(leftover, ignore_errors=True)


def write_merged(run: Path, model: Network, state: CheckpointState, folder: Path) -> None:
    """The files of a run folder with `model`, which will be called `<run>/merged`."""
    config = copy.deepcopy(read_yaml(run / CONFIG_FILE))
    config["run"]["dir"] = str(run / MERGED)
    write_atomically(folder / CONFIG_FILE, yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
    for name in (TOKENIZER_FILE, TEMPLATE_FILE):
        if (run / name).exists():
            write_atomically(folder / name, (run / name).read_bytes())
    save_weights(
        model, folder / "checkpoints", replace(state, adapters={}, extra={}, updates=0, world_size=1, files={})
    )


def write_adapter(model: GPTNeo, state: CheckpointState, folder: Path) -> None:
    """The additions as `peft.PeftModel.from_pretrained` reads them onto the exported base network."""
    lora = LoraConfig(state.adapters["rank"], state.adapters["alpha"])
    tensors = {}
    for index, layer in enumerate(adaptable_layers(model)):
        for name, modules in HF_LINEAR_NAMES.items():
            for module, (a, b) in zip(modules, lora_parts(layer, name), strict=True):
                prefix = f"base_model.model.transformer.h.{index}.{module}"
                tensors[f"{prefix}.lora_A.weight"] = a.cpu().contiguous()
                tensors[f"{prefix}.lora_B.weight"] = b.cpu().contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({module.split(".")[-1] for modules in HF_LINEAR_NAMES.values() for module in modules}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_atomically(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    write_atomically(folder / "adapter_config.json", orjson.dumps(config, option=orjson.OPT_INDENT_2))


def drift_sequences(run: Path) -> list[Tensor]:
    """The beginnings of some held-out records of a run, (tokens,) int64 each; of records trained on where none is held
    out, and none where the files have gone."""
    data = read_yaml(run / CONFIG_FILE).get("data", {})
    sequences: list[Tensor] = []
    left = DRIFT_TOKENS
    for prefix in (data.get("heldout") or data.get("sources") or {}).values():
        try:
            file = TokenFile(prefix)
        except DataError:
            continue
        lengths = file.lengths
        for start, length in zip(np.cumsum(lengths) - lengths, lengths, strict=True):
            count = min(int(length), DRIFT_LENGTH, left)
            if left == 0:
                break
            ids = np.empty(count, np.int64)
            file.gather(np.array([start]), np.array([count]), ids)
            sequences.append(torch.from_numpy(ids))
            left -= count
    return sequences


@torch.inference_mode()
def logits_of(model: Network, sequences: list[Tensor]) -> list[Tensor]:
    """(tokens, vocab_size) of each sequence, on the CPU."""
    device = model.embedding.device
    found = []
    for ids in sequences:
        tokens = ids[: model.config.max_seq_len].to(device)
        offsets = torch.tensor([0, len(tokens)], dtype=torch.int32, device=device)
        found.append(model(tokens, torch.arange(len(tokens), device=device), offsets).cpu())
    return found
