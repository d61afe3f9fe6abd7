"""Activation checkpointing: the same bits as without, the memory that the arithmetic says, nothing left behind."""

import gc
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from mindllm_engine.kernels.backend import select_kernels
from mindllm_engine.models import NetworkConfig
from mindllm_engine.models.activation_memory import ActivationCheckpointing, activation_bytes
from mindllm_engine.models.gpt_neo import GPTNeoConfig
from mindllm_engine.models.layer_options import apply_layer_options
from mindllm_engine.models.mindllm import MindLLMConfig
from mindllm_engine.models.minicpm import MiniCPMConfig
from tests.distributed.one_rank import flat_parameters
from tests.models.live_storages import LiveStorages
from tests.models.packing import pack

NETWORKS: dict[str, NetworkConfig] = {
    "mindllm": MindLLMConfig(vocab_size=97, hidden_size=64, ffn_size=96, n_layers=2, n_heads=2, max_seq_len=128),
    "gpt_neo": GPTNeoConfig(
        vocab_size=97, hidden_size=64, ffn_size=96, n_layers=2, n_heads=2, max_seq_len=128, window_size=20
    ),
    "minicpm": MiniCPMConfig(
        vocab_size=97, hidden_size=64, ffn_size=96, n_layers=2, n_heads=2, n_kv_heads=1, max_seq_len=128, width_base=32
    ),
}
MODES: list[ActivationCheckpointing] = ["none", "selective", "full"]
DOCUMENTS = [90, 64, 70]
TOKENS = sum(DOCUMENTS)


@pytest.fixture(autouse=True)
def restore_kernels() -> Any:
    yield
    select_kernels("auto")


def two_micro_batches(network: str, dtype: torch.dtype, mode: ActivationCheckpointing, lengths: list[int]) -> Any:
    """Losses of both, and the main gradient."""
    model = NETWORKS[network].build(dtype=dtype, seed=0)
    flat = flat_parameters(model)
    apply_layer_options(model, mode, compiled=False)
    found = []
    for seed in range(2):
        tokens, positions, cu_seqlens, targets = pack(lengths, 97, seed)
        losses = model(tokens, positions, cu_seqlens, targets, grad_scale=0.125)
        (losses.sum() * 0.125).backward()
        found.append(losses.detach())
    return found, flat.views(flat.grads)


@pytest.mark.parametrize("kernels", ["reference", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("network", NETWORKS)
def test_losses_and_gradients_are_the_same_bits(
    network: str, dtype: torch.dtype, kernels: Literal["reference", "triton"]
) -> None:
    select_kernels(kernels)
    lengths = DOCUMENTS if kernels == "reference" else [5, 3]
    losses, gradients = two_micro_batches(network, dtype, "none", lengths)
    assert all(gradient.any() for gradient in gradients.values())
    for mode in MODES[1:]:
        other_losses, other_gradients = two_micro_batches(network, dtype, mode, lengths)
        assert all(torch.equal(a, b) for a, b in zip(losses, other_losses, strict=True))
        for name, gradient in gradients.items():
            assert torch.equal(gradient, other_gradients[name]), f"{mode}: {name}"


def held(config: NetworkConfig, dtype: torch.dtype, mode: ActivationCheckpointing, device: str) -> tuple[int, int, int]:
    """Bytes alive after the forward of a micro-batch (without its losses), the most at once until backward is done,
    and those left."""
    model = config.build(dtype=dtype, seed=0, device=device)
    flat_parameters(model)
    apply_layer_options(model, mode, compiled=False)
    tokens, positions, cu_seqlens, targets = pack(DOCUMENTS, config.vocab_size)
    tokens, positions, targets = (x.to(device) for x in (tokens, positions, targets))

    def forward() -> Tensor:
        return model(tokens, positions, cu_seqlens, targets, grad_scale=1 / TOKENS)

    (forward().sum() / TOKENS).backward()  # tables are cached
    gc.disable()
    try:
        with LiveStorages() as storages:
            losses = forward()
            kept = storages.alive() - losses.nbytes
            (losses.sum() / TOKENS).backward()
            del losses
            return kept, storages.peak, storages.alive()
    finally:
        gc.enable()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernels", ["reference", "triton"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_arithmetic_is_what_memory_holds(
    network: str, kernels: Literal["reference", "triton"], dtype: torch.dtype, mode: ActivationCheckpointing
) -> None:
    """Kernels on meta tensors, which are allocated as any; attention's reference is the only one that runs on them."""
    select_kernels(kernels)
    config = NETWORKS[network]
    kept, peak, left = held(config, dtype, mode, "cpu" if kernels == "reference" else "meta")
    expected = activation_bytes(
        config,
        TOKENS,
        mode,
        itemsize=dtype.itemsize,
        reference_kernels=kernels == "reference",
        reference_attention=DOCUMENTS,
    )
    assert kept == expected.kept
    assert left == 0, "backward has let go of everything, without a garbage collection"
    if kernels == "triton":  # the references' own scratch is not small beside toy sizes
        assert peak == pytest.approx(expected.peak, rel=0.05)


def test_bytes_of_a_layer_of_mindllm_3b() -> None:
    """By hand, bf16, FlashAttention: 16 h + 6 f and 88 bytes of statistics, 12 h + 4 f, and 2 h."""
    config = MindLLMConfig(
        vocab_size=125_700, hidden_size=2560, ffn_size=8192, n_layers=32, n_heads=20, max_seq_len=2048
    )
    found = [activation_bytes(config, 2048, mode).layers / (32 * 2048) for mode in MODES]
    assert found == [90_200, 63_576, 5_120]


def test_a_graph_that_is_dropped_without_backward_leaves_nothing() -> None:
    config = NETWORKS["mindllm"]
    for mode in MODES:
        model = config.build(seed=0)
        apply_layer_options(model, mode, compiled=False)
        tokens, positions, cu_seqlens, targets = pack(DOCUMENTS, 97)
        model(tokens, positions, cu_seqlens, targets)
        gc.disable()
        try:
            with LiveStorages() as storages:
                losses = model(tokens, positions, cu_seqlens, targets)
                assert storages.alive() > losses.nbytes
                del losses
                assert storages.alive() == 0
        finally:
            gc.enable()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("mode", MODES[1:])
def test_decoding_with_a_cache_is_as_without(network: str, mode: ActivationCheckpointing) -> None:
    model = NETWORKS[network].build(seed=0)
    tokens, positions, cu_seqlens, _ = pack([9], 97)
    whole = model(tokens, positions, cu_seqlens).detach()
    apply_layer_options(model, mode, compiled=False)
    cache = model.new_cache(9)
    parts = []
    for part in (slice(0, 6), slice(6, 9)):  # gradients are recorded, which must not make a layer run again
        offsets = torch.tensor([0, len(tokens[part])], dtype=torch.int32)
        parts.append(model(tokens[part], positions[part], offsets, cache=cache).detach())
    assert cache.length == 9
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)


class TinyLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        self.seen.append(cu_seqlens)
        return (x * self.weight).exp()


def test_a_layer_that_runs_again_sees_the_same_tensor_of_offsets() -> None:
    """Attention remembers by the tensor itself what a tensor of offsets on a GPU holds, and waits for any other."""
    model: Any = nn.Module()
    model.layers = nn.ModuleList([TinyLayer(), TinyLayer()])
    apply_layer_options(model, "full", compiled=False)
    x, offsets = torch.ones(3, 4), torch.tensor([0, 3])
    for layer in model.layers:
        x = layer(x, offsets)
    x.sum().backward()
    for layer in model.layers:
        assert len(layer.seen) == 2
        assert all(seen is offsets for seen in layer.seen)


def test_what_was_saved_and_then_changed_is_refused() -> None:
    model: Any = nn.Module()
    model.layers = nn.ModuleList([TinyLayer()])
    apply_layer_options(model, "selective", compiled=False)
    x = torch.ones(3, 4)
    y = model.layers[0](x, torch.tensor([0, 3]))
    x.add_(1)
    with pytest.raises(RuntimeError, match=r"tensor \(3, 4\) torch\.float32 that backward needs was changed in place"):
        y.sum().backward()


@pytest.mark.parametrize(("network", "of_embedding"), [("mindllm", 0), ("gpt_neo", 1)])
def test_no_second_gradient_of_the_vocabulary_matrix_is_held(network: str, of_embedding: int) -> None:
    """Over micro-batches, all that is ever allocated beside parameters and main gradients is less than that one
    gradient in bf16, and nothing of it is left. Torch's embedding, which GPT-Neo begins with, makes one for a while."""
    select_kernels("triton")
    config = type(NETWORKS[network])(**{**vars(NETWORKS[network]), "vocab_size": 8192})
    model = config.build(dtype=torch.bfloat16, device="meta")
    flat_parameters(model)
    tokens, positions, cu_seqlens, targets = (x if x.dtype == torch.int32 else x.to("meta") for x in pack([20], 97))
    model(tokens, positions, cu_seqlens, targets)  # tables are cached
    with LiveStorages() as storages:
        for _ in range(3):
            losses = model(tokens, positions, cu_seqlens, targets, grad_scale=1 / 20)
            (losses.sum() / 20).backward()
            del losses
            assert storages.alive() == 0
    gradient = model.embedding.numel() * 2
    assert of_embedding * gradient < storages.peak < (1 + of_embedding) * gradient


@pytest.mark.parametrize("network", NETWORKS)
def test_what_documents_that_share_a_block_of_attention_keep(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of this pack share one, so attention's own scratch is as large as what it keeps: the peak is not compared."""
    lengths = [64, 30, 34]
    monkeypatch.setitem(globals(), "DOCUMENTS", lengths)
    monkeypatch.setitem(globals(), "TOKENS", sum(lengths))
    select_kernels("triton")
    config = NETWORKS[network]
    kept, _, left = held(config, torch.bfloat16, "none", "meta")
    assert kept == activation_bytes(config, sum(lengths), "none", reference_attention=lengths).kept
    assert left == 0
