"""MiniCPM: without its factors against transformers' Llama, with them against a second implementation in fp64; sizes,
initialisation, learning rates and configuration."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from mindllm_engine.errors import ConfigError
from mindllm_engine.models.minicpm import MiniCPM, MiniCPMConfig
from tests.models.naive_minicpm import naive_logits
from tests.models.packing import pack

LLAMA = MiniCPMConfig(
    vocab_size=67, hidden_size=48, ffn_size=40, n_layers=3, n_heads=6, n_kv_heads=2, max_seq_len=300, rope_base=5e3
)
CONFIG = replace(LLAMA, scale_emb=12.0, scale_depth=1.4, width_base=16, init_std=0.1)
LENGTHS = [7, 1, 15, 12]


def peer(config: MiniCPMConfig = LLAMA) -> LlamaForCausalLM:
    """Transformers' network of the same sizes; its weights are large, so that attention is far from uniform."""
    torch.manual_seed(0)
    theirs = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_size,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        max_position_embeddings=config.max_seq_len,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
        rms_norm_eps=config.norm_eps,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(theirs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def under_our_names(theirs: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """A Llama's tensors as our parameters."""
    found = {"embedding": theirs["model.embed_tokens.weight"], "final_norm": theirs["model.norm.weight"]}
    packed = {
        "attention_norm": ["input_layernorm"],
        "qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "attention_out": ["self_attn.o_proj"],
        "ffn_norm": ["post_attention_layernorm"],
        "gate_up": ["mlp.gate_proj", "mlp.up_proj"],
        "ffn_out": ["mlp.down_proj"],
    }
    for index in range(layers):
        for name, parts in packed.items():
            found[f"layers.{index}.{name}"] = torch.cat([theirs[f"model.layers.{index}.{p}.weight"] for p in parts])
    return found


def spread(model: MiniCPM) -> MiniCPM:
    """Norm weights other than 1, which would hide a forgotten one."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_without_factors_logits_and_gradients_are_those_of_llama(kv_heads: int) -> None:
    config = replace(LLAMA, n_kv_heads=kv_heads)
    theirs, ours = peer(config), config.build(seed=0)
    ours.load_state_dict(under_our_names(theirs.state_dict(), config.n_layers))
    tokens, positions, cu_seqlens, targets = pack([270], config.vocab_size)
    their_logits = theirs(tokens[None]).logits[0]
    assert (ours(tokens, positions, cu_seqlens) - their_logits).abs().max() < 1e-5

    ours(tokens, positions, cu_seqlens, targets).mean().backward()
    F.cross_entropy(their_logits, targets, reduction="none").mean().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    for name, gradient in under_our_names(gradients, config.n_layers).items():
        assert (ours.get_parameter(name).grad - gradient).abs().max() < 1e-5, name


@pytest.mark.parametrize(
    "config", [CONFIG, replace(CONFIG, scale_depth=None), replace(CONFIG, width_base=None, n_kv_heads=6)]
)
def test_with_factors_logits_losses_and_gradients_are_those_of_the_naive_network(config: MiniCPMConfig) -> None:
    model = spread(config.build(dtype=torch.float64, seed=1))
    naive = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    tokens, positions, cu_seqlens, targets = pack(LENGTHS, config.vocab_size)
    expected = torch.cat([naive_logits(naive, part, config) for part in tokens.split(LENGTHS)])
    torch.testing.assert_close(model(tokens, positions, cu_seqlens), expected, rtol=1e-11, atol=1e-11)
    projected = model.hidden_states(tokens, positions, cu_seqlens) @ model.embedding.T
    torch.testing.assert_close(projected, expected, rtol=1e-11, atol=1e-11)

    losses = model(tokens, positions, cu_seqlens, targets)
    expected_losses = F.cross_entropy(expected, targets, reduction="none")
    torch.testing.assert_close(losses, expected_losses, rtol=1e-11, atol=1e-11)
    losses.mean().backward()
    expected_losses.mean().backward()
    for name, leaf in naive.items():
        torch.testing.assert_close(model.get_parameter(name).grad, leaf.grad, rtol=1e-9, atol=1e-11, msg=name)


def test_every_factor_changes_the_logits() -> None:
    batch = pack(LENGTHS, CONFIG.vocab_size)[:3]
    logits = CONFIG.build(dtype=torch.float64, seed=1)(*batch)
    for without in ({"scale_emb": 1.0}, {"scale_depth": None}, {"width_base": None}):
        model = replace(CONFIG, **without).build(dtype=torch.float64, seed=1)
        assert (model(*batch) - logits).abs().max() > 1e-3, without


def test_documents_in_a_pack_do_not_see_each_other() -> None:
    model = CONFIG.build(dtype=torch.float64, seed=1)
    tokens, positions, cu_seqlens, _ = pack(LENGTHS, CONFIG.vocab_size)
    packed = model(tokens, positions, cu_seqlens)
    for part, logits in zip(tokens.split(LENGTHS), packed.split(LENGTHS), strict=True):
        alone = model(part, torch.arange(len(part)), torch.tensor([0, len(part)], dtype=torch.int32))
        torch.testing.assert_close(alone, logits, rtol=1e-12, atol=1e-12)


def test_last_only_gives_the_last_row() -> None:
    model = CONFIG.build(seed=1)
    tokens, positions, cu_seqlens, _ = pack([9], CONFIG.vocab_size)
    whole = model(tokens, positions, cu_seqlens)
    torch.testing.assert_close(model(tokens, positions, cu_seqlens, last_only=True), whole[-1:])


def test_bf16_and_fp32_agree() -> None:
    model = CONFIG.build(seed=0)
    tokens, positions, cu_seqlens, targets = pack(LENGTHS, CONFIG.vocab_size)
    exact = model(tokens, positions, cu_seqlens, targets).detach()
    rounded = model.bfloat16()(tokens, positions, cu_seqlens, targets)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.detach(), exact, rtol=0, atol=0.06)


def test_parameters_and_operations() -> None:
    model = CONFIG.build(device="meta")
    matrices = 3 * (48 * (48 + 2 * 16) + 48 * 48 + 3 * 48 * 40) + 67 * 48
    assert model.num_parameters() == matrices + 7 * 48
    assert model.flops_per_token(100) == 6 * matrices + 12 * 3 * 48 * 100


def test_initialisation_is_that_of_table_7() -> None:
    """0.1 / sqrt(width / base) for the layers' matrices, 0.1 for the rest, norms 1."""
    config = replace(CONFIG, vocab_size=4000, hidden_size=256, ffn_size=512, n_heads=4, width_base=64)
    model = config.build(seed=3)
    assert model.embedding.std().item() == pytest.approx(0.1, rel=0.01)
    for name, parameter in model.layers[1].named_parameters():
        if parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.1 / 2, rel=0.02), name
            assert abs(parameter.mean().item()) < 0.02 * 0.05, name
        else:
            assert torch.equal(parameter, torch.ones(256)), name
    assert torch.equal(model.final_norm, torch.ones(256))


def test_learning_rates_are_those_of_table_7() -> None:
    model = CONFIG.build(device="meta")
    scales = model.learning_rate_scales()
    matrices = {name for name, p in model.named_parameters() if p.ndim == 2 and name != "embedding"}
    assert scales == dict.fromkeys(matrices, 16 / 48)
    assert LLAMA.build(device="meta").learning_rate_scales() == {}


def test_a_seed_gives_the_same_network_in_every_dtype() -> None:
    first, again, other = (CONFIG.build(seed=seed) for seed in (5, 5, 6))
    rounded = CONFIG.build(seed=5, dtype=torch.bfloat16)
    for a, b, c in zip(first.parameters(), again.parameters(), rounded.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a.bfloat16(), c)
    assert not torch.equal(first.embedding, other.embedding)
    assert not torch.equal(CONFIG.build().embedding, CONFIG.build().embedding)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vocab_size", 0, "minicpm.vocab_size must be at least 1"),
        ("n_kv_heads", 0, "minicpm.n_kv_heads must be at least 1"),
        ("n_kv_heads", 4, "n_kv_heads 4 does not divide model.minicpm.n_heads 6"),
        ("n_heads", 5, "n_heads 5 does not divide model.minicpm.hidden_size 48"),
        ("n_heads", 16, "even"),
        ("scale_emb", 0.0, "minicpm.scale_emb must be above 0"),
        ("scale_depth", -1.4, "minicpm.scale_depth must be above 0"),
        ("width_base", 0, "minicpm.width_base must be above 0"),
        ("init_std", float("inf"), "minicpm.init_std"),
        ("rope_base", float("nan"), "minicpm.rope_base"),
    ],
)
def test_impossible_sizes_name_their_key(key: str, value: float, message: str) -> None:
    changed = {key: value} | ({"n_kv_heads": 16} if (key, value) == ("n_heads", 16) else {})
    with pytest.raises(ConfigError, match=message) as error:
        replace(CONFIG, **changed).build()
    assert "\n" not in str(error.value)
