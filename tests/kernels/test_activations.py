"""LayerNorm against torch."""

import torch

from mindllm_engine.kernels.layer_norm import layer_norm


def test_layer_norm_gradients() -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 6), (6,), (6,)))
    assert torch.autograd.gradcheck(lambda x, w, b: layer_norm(x, w, b, 1e-5), (x, weight, bias))
    centred = x - x.mean(dim=-1, keepdim=True)
    by_hand = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight + bias
    torch.testing.assert_close(layer_norm(x, weight, bias, 1e-5), by_hand)
