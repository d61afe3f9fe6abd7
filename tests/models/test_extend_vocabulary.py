"""Growing the tied embedding."""

import pytest
import torch
from torch import nn

from mindllm_engine.errors import ConfigError
from mindllm_engine.models import ModelConfig
from mindllm_engine.models.extend_vocabulary import extend_vocabulary
from tests.models.packing import pack
from tests.models.test_model_config import GPT_NEO, MINDLLM

OLD, NEW = 11, 40
MODELS = pytest.mark.parametrize("config", [ModelConfig(mindllm=MINDLLM), ModelConfig(gpt_neo=GPT_NEO)])


@MODELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_old_logits_stay_bit_for_bit(config: ModelConfig, dtype: torch.dtype) -> None:
    model = config.build(dtype=dtype, seed=0)
    old_rows = model.embedding.detach().clone()
    tokens, positions, cu_seqlens, _ = pack([5, 3], OLD)
    before = model(tokens, positions, cu_seqlens)
    extend_vocabulary(model, NEW, seed=1)
    after = model(tokens, positions, cu_seqlens)
    assert after.shape == (8, NEW)
    # A GEMM of another width may add the same products in another order.
    torch.testing.assert_close(after[:, :OLD], before, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.02)
    assert model.config.vocab_size == NEW
    assert config.selected.vocab_size == OLD  # the caller's configuration is its own
    model.embedding = nn.Parameter(model.embedding[:OLD].detach())
    assert torch.equal(model.embedding, old_rows)
    assert torch.equal(model(tokens, positions, cu_seqlens), before)


@MODELS
def test_new_rows_are_near_the_mean_and_depend_on_the_seed(config: ModelConfig) -> None:
    first, again, other = (config.build(seed=0) for _ in range(3))
    mean = first.embedding.mean(dim=0)
    spread = first.embedding.std(dim=0, correction=0)
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        extend_vocabulary(model, NEW, seed)
    new = first.embedding[OLD:]
    assert ((new - mean).abs() < 0.5 * spread + 1e-6).all()
    assert len(torch.unique(new, dim=0)) == NEW - OLD
    assert torch.equal(first.embedding, again.embedding)
    assert not torch.equal(first.embedding, other.embedding)


def test_gradients_reach_old_and_new_rows() -> None:
    model = ModelConfig(mindllm=MINDLLM).build(seed=0)
    extend_vocabulary(model, NEW, seed=0)
    tokens, positions, cu_seqlens, targets = pack([8], NEW)
    model(tokens, positions, cu_seqlens, targets).sum().backward()
    assert model.embedding.grad is not None
    assert (model.embedding.grad.abs().sum(dim=1) > 0).all()


def test_the_same_size_changes_nothing_and_shrinking_is_refused() -> None:
    model = ModelConfig(mindllm=MINDLLM).build(seed=0)
    before = model.embedding.detach().clone()
    extend_vocabulary(model, OLD, seed=0)
    assert torch.equal(model.embedding, before)
    with pytest.raises(ConfigError, match="shrink"):
        extend_vocabulary(model, OLD - 1, seed=0)
