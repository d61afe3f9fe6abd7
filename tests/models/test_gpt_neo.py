"""GPT-Neo against transformers' GPTNeoForCausalLM with the same random weights, and its checkpoint files both ways."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoConfig as HFConfig
from transformers import GPTNeoForCausalLM

from mindllm_engine.errors import CheckpointError, ConfigError
from mindllm_engine.evaluation.gpt_neo_checkpoint import load_hf_checkpoint, save_hf_checkpoint
from mindllm_engine.models.gpt_neo import GPTNeo, GPTNeoConfig, from_hf_state_dict, to_hf_state_dict
from tests.models.packing import pack

CONFIG = GPTNeoConfig(vocab_size=67, hidden_size=32, ffn_size=48, n_layers=3, n_heads=2, max_seq_len=700)


def peer(seed: int = 0) -> GPTNeoForCausalLM:
    """Transformers' network of the same sizes; its weights are large, so that attention is far from uniform."""
    torch.manual_seed(seed)
    config = HFConfig(
        vocab_size=CONFIG.vocab_size,
        hidden_size=CONFIG.hidden_size,
        intermediate_size=CONFIG.ffn_size,
        num_layers=CONFIG.n_layers,
        num_heads=CONFIG.n_heads,
        max_position_embeddings=CONFIG.max_seq_len,
        attention_types=[[["global", "local"], 1], [["global"], 1]],
        window_size=CONFIG.window_size,
        attn_implementation="eager",
    )
    model = GPTNeoForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("length", [100, 256, 300, 600])
def test_logits_and_gradients_equal_transformers(length: int) -> None:
    theirs = peer()
    ours = CONFIG.build(seed=0)
    from_hf_state_dict(ours, theirs.state_dict())
    tokens, positions, cu_seqlens, targets = pack([length], CONFIG.vocab_size)

    their_logits = theirs(tokens[None]).logits[0]
    assert (ours(tokens, positions, cu_seqlens) - their_logits).abs().max() < 1e-5

    ours(tokens, positions, cu_seqlens, targets).mean().backward()
    torch.nn.functional.cross_entropy(their_logits, targets, reduction="none").mean().backward()
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(parameter.grad)  # the name mapping then gives the gradients under transformers' names
    for name, gradient in to_hf_state_dict(ours).items():
        assert (gradient - their_gradients[name]).abs().max() < 1e-5, name


def test_documents_in_a_pack_do_not_see_each_other() -> None:
    model = CONFIG.build(dtype=torch.float64, seed=0)
    lengths = [300, 1, 280]
    tokens, positions, cu_seqlens, _ = pack(lengths, CONFIG.vocab_size)
    packed = model(tokens, positions, cu_seqlens)
    for part, logits in zip(tokens.split(lengths), packed.split(lengths), strict=True):
        alone = model(part, torch.arange(len(part)), torch.tensor([0, len(part)], dtype=torch.int32))
        torch.testing.assert_close(alone, logits, rtol=1e-12, atol=1e-12)


def test_parameter_counts_of_gpt_neo_1_3b() -> None:
    model = GPTNeoConfig().build(device="meta")
    assert model.num_parameters() == 1_315_575_808
    matrices = 50257 * 2048 + 24 * (4 * 2048**2 + 2 * 2048 * 8192)
    assert model.flops_per_token(2048) == 6 * matrices + 12 * 2048 * (12 * 2048 + 12 * 256)


def test_reads_what_transformers_writes(tmp_path: Path) -> None:
    theirs = peer()
    theirs.save_pretrained(tmp_path)
    ours = load_hf_checkpoint(tmp_path)
    assert ours.config == CONFIG
    state = theirs.state_dict()
    for name, tensor in to_hf_state_dict(ours).items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_transformers_reads_what_we_write(tmp_path: Path, dtype: torch.dtype) -> None:
    ours = CONFIG.build(dtype=dtype, seed=4)
    save_hf_checkpoint(ours, tmp_path / "new" / "folder")
    theirs, report = GPTNeoForCausalLM.from_pretrained(
        tmp_path / "new" / "folder", dtype="auto", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert theirs.dtype == dtype
    state = theirs.state_dict()
    for name, tensor in to_hf_state_dict(ours).items():
        assert torch.equal(tensor, state[name]), name
    again = load_hf_checkpoint(tmp_path / "new" / "folder")
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), again.parameters(), strict=True))


def test_reads_the_pickle_of_an_old_checkpoint(tmp_path: Path) -> None:
    ours = write_checkpoint(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    # Old files hold the masks and the tied projection too.
    state["lm_head.weight"] = state["transformer.wte.weight"]
    state["transformer.h.0.attn.attention.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    state["transformer.h.0.attn.attention.masked_bias"] = torch.tensor(-1e9)
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    again = load_hf_checkpoint(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), again.parameters(), strict=True))


def write_checkpoint(directory: Path) -> GPTNeo:
    model = CONFIG.build(seed=0)
    save_hf_checkpoint(model, directory)
    return model


def edit_config(directory: Path, **changes: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    config.update(changes)
    kept = {key: value for key, value in config.items() if value != "removed"}
    (directory / "config.json").write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "'gpt2', not 'gpt_neo'"),
        ({"activation_function": "relu"}, "activation_function"),
        ({"attention_layers": ["global"] * 3}, "alternate"),
        ({"hidden_size": "removed"}, "lacks the key 'hidden_size'"),
        ({"num_layers": "many"}, "wrong type"),
        ({"num_heads": 0}, "n_heads"),
        ({"intermediate_size": 64}, r"mlp.c_fc.bias .* is \(48,\), the network needs \(64,\)"),
        ({"num_layers": 4, "attention_layers": ["global", "local"] * 2}, "lacks 13 tensors"),
        ({"num_layers": 2, "attention_layers": ["global", "local"]}, "transformer.h.2"),
    ],
)
def test_another_network_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    write_checkpoint(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises((CheckpointError, ConfigError), match=message) as error:
        load_hf_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_hf_checkpoint(tmp_path)
    write_checkpoint(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_hf_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="neither"):
        load_hf_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not a pickle")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        load_hf_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        load_hf_checkpoint(tmp_path)


def test_an_untied_projection_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file(state | {"lm_head.weight": torch.zeros(67, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        load_hf_checkpoint(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("window_size", 0), ("n_heads", 3), ("norm_eps", -1.0)])
def test_impossible_sizes_name_their_key(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"gpt_neo.{key}"):
        replace(CONFIG, **{key: value}).validate()
