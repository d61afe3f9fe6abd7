"""The model card of an exported run: what it was trained on, for how long, how well it does, and how to load it."""

from pathlib import Path
from typing import Any

import torch

from mindllm_engine.command_line import read_yaml
from mindllm_engine.models.gpt_neo import GPTNeoConfig
from mindllm_engine.models.mindllm import MindLLMConfig
from mindllm_engine.training.metrics import METRICS_FILE, read_metrics
from mindllm_engine.training.setup import CONFIG_FILE


def model_card(
    run: Path,
    step: int,
    config: MindLLMConfig | GPTNeoConfig,
    parameters: int,
    padding_rows: int,
    dtype: torch.dtype,
    is_chat: bool,
) -> str:
    """README.md, in Markdown with the front matter of model hubs. No path of the run's files appears in it.

    Args:
        run: the run folder; what it does not hold is left out.
    """
    run_config = read_yaml(run / CONFIG_FILE) if (run / CONFIG_FILE).exists() else {}
    sources = _sources(run_config)
    languages = sorted({facts["lang"] for facts in sources.values() if "lang" in facts}) or ["en", "zh"]
    is_gpt_neo = isinstance(config, GPTNeoConfig)
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"language: [{', '.join(languages)}]",
        "---",
        f"# {'GPT-Neo' if is_gpt_neo else 'MindLLM'}, {parameters / 1e6:,.1f} M parameters",
        "",
        "Trained with mindllm_engine after the MindLLM paper (arXiv 2310.15777).",
        "",
        "| | |",
        "|---|---|",
        f"| layers, width, heads | {config.n_layers}, {config.hidden_size}, {config.n_heads} |",
        f"| longest sequence | {config.max_seq_len} tokens |",
        f"| vocabulary | {config.vocab_size} |",
        f"| weights | {str(dtype).removeprefix('torch.')} |",
        f"| optimizer steps | {step} |",
    ]
    if padding_rows:
        lines += [
            "",
            f"The last {padding_rows} rows of the vocabulary are padding: the tokenizer has no tokens for them, and "
            "generation_config.json suppresses them.",
        ]
    lines += _training(run, step, sources) + _usage(is_gpt_neo, is_chat)
    lines += ["", "## Licence", "", "Not stated here: it is for whoever publishes these weights to say."]
    return "\n".join(lines) + "\n"


def _sources(run_config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Language and category of each source, as far as the run's configuration tells."""
    corpus, data = run_config.get("corpus") or {}, run_config.get("data") or {}
    named = (corpus.get("sources") or {}) or {name: {} for name in data.get("sources") or {}}
    return {name: facts if isinstance(facts, dict) else {} for name, facts in named.items()}


def _training(run: Path, step: int, sources: dict[str, dict[str, Any]]) -> list[str]:
    records = (
        [record for record in read_metrics(run) if record["step"] <= step] if (run / METRICS_FILE).exists() else []
    )
    evaluated: dict[str, Any] = next((record for record in reversed(records) if "heldout_loss" in record), {})
    lines = ["", "## Training data and losses", ""]
    if not sources:
        return [*lines, "Not known: these weights were imported, or the run folder does not say."]
    if records:
        lines += [f"{records[-1]['tokens']:,} tokens. Losses are nats a token of held-out documents.", ""]
    lines += ["| source | language | category | loss | bits a byte |", "|---|---|---|---|---|"]
    for name, facts in sources.items():
        scores = [evaluated.get(f"heldout_{kind}/{name}") for kind in ("loss", "bpb")]
        shown = ["" if score is None else f"{score:.3f}" for score in scores]
        lines.append(f"| {name} | {facts.get('lang', '')} | {facts.get('category', '')} | {shown[0]} | {shown[1]} |")
    return lines


def _usage(is_gpt_neo: bool, is_chat: bool) -> list[str]:
    trust = "" if is_gpt_neo else ", trust_remote_code=True"
    encode = (
        [
            'chat = [{"role": "user", "content": "..."}]',
            "inputs = tokenizer.apply_chat_template(",
            '    chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
        if is_chat
        else ['inputs = tokenizer("...", return_tensors="pt")']
    )
    lines = [
        "",
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("FOLDER"{trust})',
        f'model = AutoModelForCausalLM.from_pretrained("FOLDER"{trust})',
        *encode,
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0], skip_special_tokens=True))",
        "```",
    ]
    if is_chat:
        lines += [
            "",
            "Symbols such as `<|user|>` in a message of a chat are plain text. In `tokenizer(text)` they are symbols: "
            "pass `split_special_tokens=True` for text that you do not trust.",
        ]
    return lines
