"""What Transformers makes of an exported folder, against what the engine says of the run: imported by the tests, and
run as a script by the Python of another version of Transformers, where this package is not installed.

    python exported_checks.py FOLDER EXPECTED     # EXPECTED holds expected.json and tensors.safetensors
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 1e-5


def check_all(folder: Path, expected: Path) -> None:
    facts = json.loads((expected / "expected.json").read_text(encoding="utf-8"))
    tensors = load_file(expected / "tensors.safetensors")
    check_tokenizer(folder, facts)
    check_chats(folder, facts)
    check_model_card(folder)
    model = load(folder)
    check_logits(model, tensors)
    check_padding(model, tensors)
    check_cache(model, tensors)
    check_generation(model, facts)
    eager = load(folder, attn_implementation="eager")
    check_logits(eager, tensors)
    check_padding(eager, tensors)
    with tempfile.TemporaryDirectory() as again:
        model.save_pretrained(again)
        check_logits(load(Path(again)), tensors)


def load(folder: Path, **options: Any) -> Any:
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32, output_loading_info=True, **options
    )
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    return model.eval()


def load_tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def check_tokenizer(folder: Path, facts: dict[str, Any]) -> None:
    """Equal ids for every text, one by one and in a batch, and the texts back."""
    tokenizer = load_tokenizer(folder)
    options = (
        {"add_special_tokens": False, "split_special_tokens": True} if facts["chats"] else {"add_special_tokens": False}
    )
    assert tokenizer(facts["texts"], **options)["input_ids"] == facts["ids"]
    for text, ids, decoded in zip(facts["texts"], facts["ids"], facts["decoded"], strict=True):
        assert tokenizer(text, **options)["input_ids"] == ids, repr(text)
        assert tokenizer.decode(ids, skip_special_tokens=True) == decoded, repr(text)
        assert tokenizer.decode(ids) == decoded, repr(text)
    assert tokenizer("x", **options | {"add_special_tokens": True})["input_ids"] == facts["x_with_begin"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == tuple(facts["bos_eos_pad"])
    assert len(tokenizer) == facts["tokenizer_vocab_size"]


def check_chats(folder: Path, facts: dict[str, Any]) -> None:
    """The ids of whole chats and of prompts."""
    tokenizer = load_tokenizer(folder)
    for chat in facts["chats"]:
        for is_prompt, ids in ((True, chat["prompt"]), (False, chat["whole"])):
            if ids is not None:
                rendered = tokenizer.apply_chat_template(
                    chat["messages"], add_generation_prompt=is_prompt, return_dict=True
                )
                assert rendered["input_ids"] == ids, chat["messages"]


def check_model_card(folder: Path) -> None:
    """What the model card tells users to run, runs; nothing but ids and mask goes into the network."""
    assert set(load_tokenizer(folder)("x")) == {"input_ids", "attention_mask"}
    code = (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    exec(code.replace("FOLDER", str(folder)), {})


@torch.no_grad()
def check_logits(model: Any, tensors: dict[str, Tensor]) -> None:
    tokens, logits = tensors["tokens"], tensors["logits"]
    assert (model(tokens[None]).logits[0] - logits).abs().max() < TOLERANCE
    labels = tokens.clone()
    labels[:10] = -100
    loss = model(tokens[None], labels=labels[None]).loss
    assert abs(loss - torch.nn.functional.cross_entropy(logits[9:-1], tokens[10:])) < TOLERANCE


@torch.no_grad()
def check_padding(model: Any, tensors: dict[str, Tensor]) -> None:
    """Padding on either side changes no logits. Transformers' GPT-Neo must be told the positions."""
    tokens, logits = tensors["tokens"], tensors["logits"]
    short = tokens[:37]
    for left in (True, False):
        padding = len(tokens) - len(short)
        side = (padding, 0) if left else (0, padding)
        batch = torch.stack((tokens, torch.nn.functional.pad(short, side)))
        mask = torch.stack((torch.ones_like(tokens), torch.nn.functional.pad(torch.ones_like(short), side)))
        options = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if model.config.model_type == "gpt_neo" else {}
        both = model(batch, attention_mask=mask, **options).logits
        assert (both[0] - logits).abs().max() < TOLERANCE
        assert (both[1][mask[1].bool()] - logits[: len(short)]).abs().max() < TOLERANCE
        assert both.isfinite().all()


@torch.no_grad()
def check_cache(model: Any, tensors: dict[str, Tensor]) -> None:
    """A prompt, several tokens more, then one by one."""
    tokens, logits = tensors["tokens"][None], tensors["logits"]
    cache, found = None, []
    for start, stop in ((0, 20), (20, 30), *((at, at + 1) for at in range(30, 60))):
        output = model(tokens[:, start:stop], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        found.append(output.logits[0])
    assert (torch.cat(found) - logits[:60]).abs().max() < TOLERANCE


def check_generation(model: Any, facts: dict[str, Any]) -> None:
    """Greedy continuations, alone and in a batch padded on the left, end where the engine's end."""
    prompts, continuations = facts["prompts"], facts["continuations"]
    count = facts["new_tokens"]
    for prompt, continuation in zip(prompts, continuations, strict=True):
        tokens = torch.tensor([prompt])
        found = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, do_sample=False)
        assert found[0, len(prompt) :].tolist() == continuation
        without = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, do_sample=False, use_cache=False
        )
        assert without.tolist() == found.tolist()
    longest = max(map(len, prompts))
    pad = model.generation_config.pad_token_id
    batch = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    found = model.generate(batch, attention_mask=mask, max_new_tokens=count, do_sample=False)
    for row, continuation in zip(found[:, longest:].tolist(), continuations, strict=True):
        assert row[: len(continuation)] == continuation
        assert set(row[len(continuation) :]) <= {pad}
    assert model.generation_config.eos_token_id == facts["stop_ids"]


if __name__ == "__main__":
    check_all(Path(sys.argv[1]), Path(sys.argv[2]))
    print("all as expected")
