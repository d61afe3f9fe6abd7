"""The main gradient of a step of two micro-batches, as the training loop takes it, against fp64 networks written by
others: MindLLM and MiniCPM a second time, GPT-Neo by transformers. The tied embedding reaches it through several
operators."""

from collections.abc import Callable, Iterator
from typing import Literal

import pytest
import torch
from torch import Tensor

from mindllm_engine.kernels.backend import select_kernels
from mindllm_engine.models import Network
from mindllm_engine.models.gpt_neo import GPTNeo, from_hf_state_dict
from mindllm_engine.models.mindllm import MindLLM
from mindllm_engine.models.minicpm import MiniCPM
from tests.distributed.one_rank import flat_parameters
from tests.models import test_gpt_neo, test_mindllm, test_minicpm
from tests.models.naive_mindllm import naive_logits
from tests.models.packing import pack

BATCHES = [[7, 1, 4], [9]]
# Not the 1 / tokens of the training loop, but as exact in fp32: a factor left out shows.
GRAD_SCALE = 0.125


@pytest.fixture(autouse=True)
def restore_kernels() -> Iterator[None]:
    yield
    select_kernels("auto")


def mindllm() -> tuple[MindLLM, Callable[[], dict[str, Tensor]]]:
    config = test_mindllm.CONFIG
    model = config.build(dtype=torch.float64, seed=1)
    naive = test_mindllm.unpack_parameters(model.bfloat16().double())

    def truth() -> dict[str, Tensor]:
        for tokens, targets in documents(config.vocab_size):
            logits = naive_logits(naive, tokens, config.n_layers, config.n_heads, config.rope_base, config.norm_eps)
            (torch.nn.functional.cross_entropy(logits, targets, reduction="sum") * GRAD_SCALE).backward()
        return test_mindllm.repack_gradients(naive)

    return model, truth


def gpt_neo() -> tuple[GPTNeo, Callable[[], dict[str, Tensor]]]:
    theirs = test_gpt_neo.peer().bfloat16().double()
    model = test_gpt_neo.CONFIG.build(dtype=torch.float64, seed=0)
    from_hf_state_dict(model, theirs.state_dict())

    def truth() -> dict[str, Tensor]:
        for tokens, targets in documents(test_gpt_neo.CONFIG.vocab_size):
            logits = theirs(tokens[None]).logits[0]
            (torch.nn.functional.cross_entropy(logits, targets, reduction="sum") * GRAD_SCALE).backward()
        gradients = test_gpt_neo.CONFIG.build(dtype=torch.float64, seed=0)
        from_hf_state_dict(gradients, {name: p.grad for name, p in theirs.named_parameters()})
        return {name: gradient.detach() for name, gradient in gradients.named_parameters()}

    return model, truth


def minicpm() -> tuple[MiniCPM, Callable[[], dict[str, Tensor]]]:
    config = test_minicpm.CONFIG
    model = config.build(dtype=torch.float64, seed=1).bfloat16().double()
    naive = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}

    def truth() -> dict[str, Tensor]:
        for tokens, targets in documents(config.vocab_size):
            logits = test_minicpm.naive_logits(naive, tokens, config)
            (torch.nn.functional.cross_entropy(logits, targets, reduction="sum") * GRAD_SCALE).backward()
        return {name: leaf.grad for name, leaf in naive.items() if leaf.grad is not None}

    return model, truth


def documents(vocab_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for seed, lengths in enumerate(BATCHES):
        tokens, _, _, targets = pack(lengths, vocab_size, seed)
        yield from zip(tokens.split(lengths), targets.split(lengths), strict=True)


@pytest.mark.parametrize(("kernels", "promised"), [("reference", False), ("triton", False), ("triton", True)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.04)])
@pytest.mark.parametrize("network", [mindllm, gpt_neo, minicpm])
def test_every_gradient_is_added_once(
    network: Callable[[], tuple[Network, Callable[[], dict[str, Tensor]]]],
    dtype: torch.dtype,
    tolerance: float,
    kernels: Literal["reference", "triton"],
    promised: bool,
) -> None:
    select_kernels(kernels)
    model, truth = network()
    model.to(dtype)
    flat = flat_parameters(model)
    flat.grads.fill_(torch.nan)
    flat.begin_step()  # what another step has left does not count
    for seed, lengths in enumerate(BATCHES):
        tokens, positions, cu_seqlens, targets = pack(lengths, model.config.vocab_size, seed)
        with torch.no_grad():  # an evaluation in between leaves no trace
            model(tokens, positions, cu_seqlens, targets)
        losses = model(tokens, positions, cu_seqlens, targets, grad_scale=GRAD_SCALE if promised else None)
        (losses.sum() * GRAD_SCALE).backward()
    gradients = flat.views(flat.grads)
    for name, exact in truth().items():
        error = (gradients[name].double() - exact).norm() / exact.norm()
        assert error < tolerance, f"{name}: off by {error}"
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("network", [mindllm, gpt_neo, minicpm])
def test_the_projections_gradient_needs_no_memory_where_it_is_promised(
    network: Callable[[], tuple[Network, Callable[[], dict[str, Tensor]]]],
) -> None:
    model, _ = network()
    flat = flat_parameters(model.float())
    tokens, positions, cu_seqlens, targets = pack([9], model.config.vocab_size)
    select_kernels("triton")
    model(tokens, positions, cu_seqlens, targets, grad_scale=GRAD_SCALE)
    # It is in the main gradient when the forward returns.
    assert flat.views(flat.grads)["embedding"].any()
