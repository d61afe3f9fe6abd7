"""MindLLM against a second implementation in fp64, its packing, sizes, initialisation and configuration."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mindllm_engine.errors import ConfigError
from mindllm_engine.models.mindllm import MindLLM, MindLLMConfig
from tests.models.naive_mindllm import NaiveParameters, naive_logits, naive_losses
from tests.models.packing import pack

CONFIG = MindLLMConfig(vocab_size=53, hidden_size=24, ffn_size=20, n_layers=3, n_heads=3, max_seq_len=40)
LENGTHS = [7, 1, 15, 12]


@pytest.fixture
def model() -> MindLLM:
    model = CONFIG.build(dtype=torch.float64, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norm weights other than 1, which would hide a forgotten one
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def unpack_parameters(model: MindLLM) -> NaiveParameters:
    """Leaves under the naive implementation's names, with qkv and gate_up taken apart."""
    parameters: NaiveParameters = {"embedding": model.embedding, "embedding_norm": model.embedding_norm}
    for index, layer in enumerate(model.layers):
        names = dict(layer.named_parameters())
        parts = dict(zip(("query", "key", "value"), names.pop("qkv").chunk(3), strict=True))
        parts.update(zip(("gate", "up"), names.pop("gate_up").chunk(2), strict=True))
        parameters.update({f"{index}.{name}": value for name, value in (names | parts).items()})
    return {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}


def repack_gradients(parameters: NaiveParameters) -> dict[str, Tensor]:
    """The naive gradients under the model's names."""
    gradients = {name: value.grad for name, value in parameters.items() if value.grad is not None}
    for layer in range(CONFIG.n_layers):
        for packed, parts in (("qkv", ("query", "key", "value")), ("gate_up", ("gate", "up"))):
            gradients[f"{layer}.{packed}"] = torch.cat([gradients.pop(f"{layer}.{part}") for part in parts])
    return {f"layers.{name}" if name[0].isdigit() else name: value for name, value in gradients.items()}


def test_logits_losses_and_gradients_equal_the_naive_network(model: MindLLM) -> None:
    tokens, positions, cu_seqlens, targets = pack(LENGTHS, CONFIG.vocab_size)
    naive = unpack_parameters(model)
    expected = torch.cat(
        [
            naive_logits(naive, part, CONFIG.n_layers, CONFIG.n_heads, CONFIG.rope_base, CONFIG.norm_eps)
            for part in tokens.split(LENGTHS)
        ]
    )
    torch.testing.assert_close(model(tokens, positions, cu_seqlens), expected, rtol=1e-11, atol=1e-11)

    losses, expected_losses = model(tokens, positions, cu_seqlens, targets), naive_losses(expected, targets)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-11, atol=1e-11)
    losses.mean().backward()
    expected_losses.mean().backward()
    for name, gradient in repack_gradients(naive).items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-9, atol=1e-11, msg=name)


def test_documents_in_a_pack_do_not_see_each_other(model: MindLLM) -> None:
    tokens, positions, cu_seqlens, _ = pack(LENGTHS, CONFIG.vocab_size)
    packed = model(tokens, positions, cu_seqlens)
    for part, logits in zip(tokens.split(LENGTHS), packed.split(LENGTHS), strict=True):
        alone = model(part, torch.arange(len(part)), torch.tensor([0, len(part)], dtype=torch.int32))
        torch.testing.assert_close(alone, logits, rtol=1e-12, atol=1e-12)


def test_a_token_changes_nothing_before_it(model: MindLLM) -> None:
    tokens, positions, cu_seqlens, _ = pack([20], CONFIG.vocab_size)
    before = model(tokens, positions, cu_seqlens)
    tokens[11] = (tokens[11] + 1) % CONFIG.vocab_size
    after = model(tokens, positions, cu_seqlens)
    assert torch.equal(before[:11], after[:11])
    assert not torch.equal(before[11:], after[11:])


def test_last_only_gives_the_last_row(model: MindLLM) -> None:
    tokens, positions, cu_seqlens, _ = pack([9], CONFIG.vocab_size)
    whole = model(tokens, positions, cu_seqlens)
    torch.testing.assert_close(model(tokens, positions, cu_seqlens, last_only=True), whole[-1:])


def test_bf16_and_fp32_agree() -> None:
    model = replace(CONFIG, vocab_size=300, hidden_size=48).build(seed=0)
    tokens, positions, cu_seqlens, targets = pack(LENGTHS, 300)
    exact = model(tokens, positions, cu_seqlens, targets).detach()
    rounded = model.bfloat16()(tokens, positions, cu_seqlens, targets)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.detach(), exact, rtol=0, atol=0.06)


def test_parameter_counts_of_mindllm_3b() -> None:
    config = MindLLMConfig(
        vocab_size=125_700, hidden_size=2560, ffn_size=8192, n_layers=32, n_heads=20, max_seq_len=2048
    )
    model = config.build(device="meta")
    layer = 4 * 2560**2 + 3 * 2560 * 8192 + 2 * 2560
    assert model.num_parameters() == 125_700 * 2560 + 2560 + 32 * layer == 3_174_085_120
    matrices = model.num_parameters() - 65 * 2560
    assert model.flops_per_token(2048) == 6 * matrices + 12 * 32 * 2560 * 2048


def test_initialisation_is_deepnorms() -> None:
    config = MindLLMConfig(vocab_size=4000, hidden_size=256, ffn_size=512, n_layers=2, n_heads=4, max_seq_len=8)
    model = config.build(seed=3)
    beta = (8 * 2) ** -0.25
    assert model.embedding.std().item() == pytest.approx(1 / 256, rel=0.01)
    layer = model.layers[1]
    query, key, value = layer.get_parameter("qkv").chunk(3)
    gate, up = layer.get_parameter("gate_up").chunk(2)
    square, oblong = (2 / 512) ** 0.5, (2 / 768) ** 0.5
    expected = [(query, square), (key, square), (value, beta * square), (gate, beta * oblong), (up, beta * oblong)]
    expected += [(layer.get_parameter("attention_out"), beta * square), (layer.get_parameter("ffn_out"), beta * oblong)]
    for weight, std in expected:
        assert weight.std().item() == pytest.approx(std, rel=0.02)
        assert abs(weight.mean().item()) < 0.02 * std
    assert torch.equal(layer.get_parameter("ffn_norm"), torch.ones(256))


def test_a_seed_gives_the_same_network_in_every_dtype() -> None:
    first, again, other = CONFIG.build(seed=5), CONFIG.build(seed=5), CONFIG.build(seed=6)
    rounded = CONFIG.build(seed=5, dtype=torch.bfloat16)
    assert torch.equal(first.embedding, again.embedding)
    assert torch.equal(first.embedding.bfloat16(), rounded.embedding)
    assert not torch.equal(first.embedding, other.embedding)
    assert not torch.equal(CONFIG.build().embedding, CONFIG.build().embedding)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vocab_size", 0, "mindllm.vocab_size must be at least 1"),
        ("n_layers", -1, "mindllm.n_layers"),
        ("n_heads", 5, "does not divide"),
        ("n_heads", 8, "even"),
        ("norm_eps", 0.0, "mindllm.norm_eps"),
        ("rope_base", float("nan"), "mindllm.rope_base"),
    ],
)
def test_impossible_sizes_name_their_key(key: str, value: float, message: str) -> None:
    config = replace(CONFIG, **{key: value})
    with pytest.raises(ConfigError, match=message) as error:
        config.build()
    assert "\n" not in str(error.value)
