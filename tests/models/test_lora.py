"""LoRA against peft on transformers' GPT-Neo with the same A and B, against dense matrices, and what is frozen."""

import pytest
import torch
from torch.nn import functional as F
from transformers import GPTNeoForCausalLM

from mindllm_engine.errors import ConfigError
from mindllm_engine.models import Network
from mindllm_engine.models.gpt_neo import HF_LINEAR_NAMES, GPTNeo, GPTNeoConfig, from_hf_state_dict
from mindllm_engine.models.kv_cache import KVCache
from mindllm_engine.models.layer_options import apply_layer_options
from mindllm_engine.models.lora import LoraConfig, adaptable_layers, add_lora, lora_parts, merge_lora
from mindllm_engine.models.mindllm import MindLLMConfig
from mindllm_engine.models.minicpm import MiniCPMConfig
from tests.models.packing import pack
from tests.models.test_gpt_neo import CONFIG as NEO
from tests.models.test_gpt_neo import peer

MIND = MindLLMConfig(vocab_size=67, hidden_size=32, ffn_size=48, n_layers=2, n_heads=2, max_seq_len=64)
MINI = MiniCPMConfig(
    vocab_size=67, hidden_size=32, ffn_size=48, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=64, scale_depth=1.4
)
CONFIGS = {"mindllm": MIND, "gpt_neo": NEO, "minicpm": MINI}
LORA = LoraConfig(rank=4, alpha=6.0)


def adapted(name: str, dtype: torch.dtype = torch.float32) -> Network:
    """A network with additions that are not 0."""
    model = CONFIGS[name].build(dtype=dtype, seed=1)
    add_lora(model, LORA, seed=2)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(dtype)
    return model


def with_peft(model: GPTNeo, base: GPTNeoForCausalLM) -> torch.nn.Module:
    """peft's network over `base` with the A and B of ours."""
    import peft

    config = peft.LoraConfig(
        r=LORA.rank,
        lora_alpha=LORA.alpha,
        target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"],
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(base, config)
    state = dict(theirs.named_parameters())
    for index, layer in enumerate(adaptable_layers(model)):
        for name, modules in HF_LINEAR_NAMES.items():
            for module, (a, b) in zip(modules, lora_parts(layer, name), strict=True):
                prefix = f"base_model.model.transformer.h.{index}.{module}"
                state[f"{prefix}.lora_A.default.weight"].data.copy_(a)
                state[f"{prefix}.lora_B.default.weight"].data.copy_(b)
    return theirs


@pytest.mark.parametrize("length", [50, 300])
def test_losses_and_gradients_are_those_of_peft(length: int) -> None:
    base = peer()
    ours = adapted("gpt_neo")
    assert isinstance(ours, GPTNeo)
    from_hf_state_dict(ours, base.state_dict())
    theirs = with_peft(ours, base)
    tokens, positions, cu_seqlens, targets = pack([length], NEO.vocab_size)

    losses = ours(tokens, positions, cu_seqlens, targets=targets)
    their_losses = F.cross_entropy(theirs(tokens[None]).logits[0], targets, reduction="none")
    torch.testing.assert_close(losses, their_losses, rtol=1e-5, atol=1e-5)

    losses.mean().backward()
    their_losses.mean().backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    compared = 0
    for index, layer in enumerate(adaptable_layers(ours)):
        for name, modules in HF_LINEAR_NAMES.items():
            grads_a = getattr(layer, f"{name}_lora_a").grad.chunk(len(modules))
            grads_b = getattr(layer, f"{name}_lora_b").grad.chunk(len(modules))
            for module, a, b in zip(modules, grads_a, grads_b, strict=True):
                prefix = f"base_model.model.transformer.h.{index}.{module}"
                torch.testing.assert_close(a, expected[f"{prefix}.lora_A.default.weight"], rtol=1e-4, atol=1e-6)
                torch.testing.assert_close(b, expected[f"{prefix}.lora_B.default.weight"], rtol=1e-4, atol=1e-6)
                compared += 2
    assert compared == len(expected) == NEO.n_layers * 12


@pytest.mark.parametrize("name", CONFIGS)
def test_fresh_additions_change_nothing_and_are_like_pefts(name: str) -> None:
    plain, ours = CONFIGS[name].build(seed=1), CONFIGS[name].build(seed=1)
    add_lora(ours, LORA, seed=2)
    batch = pack([20, 7, 30], 67)
    assert torch.equal(plain(*batch[:3]), ours(*batch[:3]))
    for layer in adaptable_layers(ours):
        for matrix in layer.linear_parts:
            for a, b in lora_parts(layer, matrix):
                assert not b.any()
                # nn.init.kaiming_uniform_(a, a=sqrt(5)): variance 1 / (3 in)
                assert a.abs().max() <= a.shape[1] ** -0.5
                assert a.var().item() == pytest.approx(1 / (3 * a.shape[1]), rel=0.5)
                assert len(a.unique()) == a.numel(), "each part is drawn by itself"


@pytest.mark.parametrize("name", CONFIGS)
def test_only_additions_get_gradients(name: str) -> None:
    model = adapted(name)
    model(*pack([20, 30], 67)[:3], targets=pack([20, 30], 67)[3]).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert ("_lora_" in parameter_name) == (parameter.grad is not None) == parameter.requires_grad


@pytest.mark.parametrize("name", CONFIGS)
def test_merging_gives_the_same_logits_and_the_names_of_a_plain_network(name: str) -> None:
    model = adapted(name)
    batch = pack([20, 7, 30], 67)
    before = model(*batch[:3])
    merge_lora(model)
    torch.testing.assert_close(model(*batch[:3]), before, rtol=1e-4, atol=2e-5)
    plain = CONFIGS[name].build(seed=1)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert (before - plain(*batch[:3])).abs().max() > 0.01, "the additions do something"


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_activation_checkpointing_gives_the_same_gradients(name: str, mode: str) -> None:
    batch = pack([20, 30], 67)
    gradients = []
    for checkpointing in ("none", mode):
        model = adapted(name)
        apply_layer_options(model, checkpointing, compiled=False)  # type: ignore[arg-type]
        model(*batch[:3], targets=batch[3]).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_kv_cache_gives_the_logits_of_the_whole_sequence(name: str) -> None:
    model = adapted(name)
    tokens, positions, cu_seqlens, _ = pack([24], 67)
    whole = model(tokens, positions, cu_seqlens)
    cache: KVCache = model.new_cache()
    with torch.no_grad():
        for first, last in ((0, 10), (10, 11), (11, 24)):
            offsets = torch.tensor([0, last - first], dtype=torch.int32)
            part = model(tokens[first:last], positions[first:last], offsets, cache=cache)
            torch.testing.assert_close(part, whole[first:last], rtol=1e-4, atol=1e-5)


def test_full_rank_fits_what_full_tuning_fits() -> None:
    """A sequence learnt by heart: additions of full rank to all matrices get as far as the matrices themselves."""
    config = MindLLMConfig(vocab_size=29, hidden_size=16, ffn_size=16, n_layers=2, n_heads=2, max_seq_len=64)
    tokens, positions, cu_seqlens, _ = pack([48], 29, seed=5)
    targets = tokens.roll(-1)
    final = {}
    for kind in ("full", "lora"):
        model = config.build(seed=1)
        model.embedding.data *= 32  # as after training: a fresh one, frozen, cannot give a token a high logit
        if kind == "lora":
            add_lora(model, LoraConfig(rank=16, alpha=16.0), seed=2)
        else:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.split(".")[-1] in ("qkv", "attention_out", "gate_up", "ffn_out"))
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(300):
            optimizer.zero_grad()
            loss = model(tokens, positions, cu_seqlens, targets=targets).mean()
            loss.backward()
            optimizer.step()
        final[kind] = loss.item()
    assert final["full"] < 0.3
    assert final["lora"] < final["full"] + 0.1


def test_operations_leave_out_the_gradients_of_frozen_matrices() -> None:
    model = MIND.build(seed=1)
    full, attention = model.flops_per_token(10), 12 * 2 * 32 * 10
    matrices = (full - attention) // 6
    add_lora(model, LORA, seed=2)
    additions = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert model.flops_per_token(10) == 4 * matrices + 6 * additions + attention


@pytest.mark.parametrize(("rank", "alpha", "key"), [(0, 1.0, "rank"), (4, 0.0, "alpha"), (4, float("nan"), "alpha")])
def test_refuses_what_adds_nothing(rank: int, alpha: float, key: str) -> None:
    with pytest.raises(ConfigError, match=f"tuning.lora.{key}"):
        LoraConfig(rank, alpha).validate()


def test_refuses_a_rank_beyond_the_full_one() -> None:
    with pytest.raises(ConfigError, match="full rank of qkv, 32"):
        add_lora(MIND.build(seed=1), LoraConfig(rank=33), seed=2)


def test_bf16_stays_bf16() -> None:
    model = adapted("gpt_neo", torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    config = GPTNeoConfig(vocab_size=67, hidden_size=32, ffn_size=48, n_layers=3, n_heads=2, max_seq_len=700)
    assert model.config == config
    assert model(*pack([20], 67)[:3]).dtype == torch.bfloat16
