"""Growing a trained network's vocabulary, for the transfer to a second language (arXiv 2310.15777, section 3.2)."""

from dataclasses import replace

import torch
from torch import nn

from mindllm_engine.errors import ConfigError
from mindllm_engine.models import Network
from mindllm_engine.models.initialization import normal_


def extend_vocabulary(model: Network, new_vocab_size: int, seed: int) -> None:
    """Grow the tied embedding of `model` in place from (V, D) to (new_vocab_size, D).

    Rows of old tokens stay bit for bit, and so do their logits, but for the order in which a wider GEMM adds. A new row
    is the mean of the old ones plus noise of the old rows' own standard deviation in each channel, times 0.1: the mean
    makes a new token's first logit that of an average token, which bounds what the wider softmax adds to the loss of
    old text, and the noise tells new tokens apart. The parameter is replaced, so an optimizer must be made afterwards.
    Raises ConfigError for a vocabulary smaller than the old one.
    """
    old = model.embedding
    vocab_size, hidden = old.shape
    if new_vocab_size < vocab_size:
        raise ConfigError(
            f"a vocabulary of {vocab_size} tokens cannot be extended to {new_vocab_size}: it would shrink"
        )
    with torch.no_grad():
        rows = old.float()
        noise = torch.empty(new_vocab_size - vocab_size, hidden)
        normal_(noise, 1.0, torch.Generator().manual_seed(seed))
        new = rows.mean(dim=0) + 0.1 * rows.std(dim=0, correction=0) * noise.to(old.device)
        model.embedding = nn.Parameter(torch.cat((old, new.to(old.dtype))), requires_grad=old.requires_grad)
    model.config = replace(model.config, vocab_size=new_vocab_size)
