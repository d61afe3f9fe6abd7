"""Networks of which only some parameters train, under ZeRO-1 on 1 and 2 real ranks, against plain torch: losses, the
frozen rest, and what is kept and sent."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mindllm_engine.distributed.process_group import World
from mindllm_engine.models.lora import LoraConfig, add_lora
from tests.distributed.processes import run_ranks
from tests.distributed.tiny_steps import MICRO_BATCHES, NETWORKS, OPTIM, micro_batch, zero1, zero1_step

STEPS, RATE = 24, 1e-2
LORA = LoraConfig(rank=4, alpha=8.0)


def adapted(network: str) -> Any:
    """A network with additions, and one vector that trains with them."""
    model = NETWORKS[network].build(dtype=torch.float32, seed=1)
    add_lora(model, LORA, seed=2)
    vectors = {"mindllm": "embedding_norm", "gpt_neo": "final_norm_bias", "minicpm": "final_norm"}
    getattr(model, vectors[network]).requires_grad_(True)
    return model


def follow(world: World, network: str) -> dict[str, Any]:
    model = adapted(network)
    frozen = {name: x.detach().clone() for name, x in model.named_parameters() if not x.requires_grad}
    storages = {name: x.data_ptr() for name, x in model.named_parameters()}
    backend = zero1(model, world)
    reports = [zero1_step(model, backend, world, step, RATE) for step in range(STEPS)]
    backend.wait_for_parameters()
    now = dict(model.named_parameters())
    return {
        "reports": reports,
        "params": {name: x.detach() for name, x in now.items()},
        "untouched": all(torch.equal(now[name], x) and now[name].grad is None for name, x in frozen.items()),
        "unmoved": all(now[name].data_ptr() == storages[name] for name in frozen),
        "without_main_grad": all(not hasattr(now[name], "main_grad") for name in frozen),
        "pieces": {piece.name for piece in backend.pieces()},
        "elements": backend.layout.elements,
        "overlap": backend.overlap,
    }


def plain_steps(network: str) -> list[tuple[float, float]]:
    """Losses and gradient norms by torch's AdamW over the parameters that train."""
    model = adapted(network)
    named = {name: x for name, x in model.named_parameters() if x.requires_grad}
    groups = [
        {"params": [x for x in named.values() if x.dim() >= 2], "weight_decay": OPTIM.weight_decay},
        {"params": [x for x in named.values() if x.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=OPTIM.betas, eps=OPTIM.eps)
    found = []
    for step in range(STEPS):
        batches = [micro_batch(step, number) for number in range(MICRO_BATCHES)]
        supervised = sum(int((targets != -100).sum()) for _, targets, _, _ in batches)
        nats = 0.0
        optimizer.zero_grad()
        for tokens, targets, positions, offsets in batches:
            logits = model(tokens, positions, offsets)
            loss = F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
            nats += loss.item()
            (loss / supervised).backward()
        norm = torch.nn.utils.clip_grad_norm_(named.values(), OPTIM.clip_grad_norm)
        optimizer.step()
        found.append((nats / supervised, norm.item()))
    return found


@pytest.mark.parametrize("network", NETWORKS)
def test_losses_are_those_of_torch_and_the_rest_is_left_alone(tmp_path: Path, network: str) -> None:
    expected = plain_steps(network)
    trained = {name for name, x in adapted(network).named_parameters() if x.requires_grad}
    elements = sum(x.numel() for x in adapted(network).parameters() if x.requires_grad)
    for size, ranks in run_ranks(follow, [1, 2], tmp_path, network).items():
        losses, norms = zip(*ranks[0]["reports"], strict=True)
        np.testing.assert_allclose(losses, [loss for loss, _ in expected], rtol=1e-5, err_msg=f"{size} ranks")
        np.testing.assert_allclose(norms, [norm for _, norm in expected], rtol=1e-3, err_msg=f"{size} ranks")
        assert set().union(*(rank["pieces"] for rank in ranks)) == trained
        for rank in ranks:
            assert rank["untouched"]
            assert rank["unmoved"]
            assert rank["without_main_grad"]
            # What is kept in fp32 and sent each step: the parameters that train, up to alignment.
            assert elements <= rank["elements"] < elements + 64 * 2 * len(trained)
            assert all(torch.equal(x, ranks[0]["params"][name]) for name, x in rank["params"].items())
            assert rank["overlap"] > 0.5
    assert expected[-1][0] < expected[0][0] - 0.2, "it learns"
