"""ZeRO-1 on 1 to 4 real ranks against plain torch on one: losses, gradient norms, weights, and the order of what is
sent."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mindllm_engine.distributed.backend import DistributedConfig
from mindllm_engine.distributed.execution_order import ExecutionOrder, record_execution_order
from mindllm_engine.distributed.process_group import World
from mindllm_engine.distributed.zero1 import Zero1
from mindllm_engine.errors import ConfigError
from mindllm_engine.kernels.backend import select_kernels
from mindllm_engine.optim.optimizer import OptimConfig
from tests.distributed.processes import run_ranks
from tests.distributed.tiny_steps import NETWORKS, OPTIM, micro_batch, plain_steps, zero1, zero1_step

STEPS, FEWER_STEPS = 50, 20


def follow(world: World, network: str, dtype: torch.dtype, config: dict[str, Any], steps: int) -> dict[str, Any]:
    """Some steps; what they report, and the parameters that are left."""
    model = NETWORKS[network].build(dtype=dtype, seed=1)
    backend = zero1(model, world, wire=dtype, **config)
    reports = [zero1_step(model, backend, world, step) for step in range(steps)]
    backend.wait_for_parameters()
    optimizer = backend.optimizer
    return {
        "reports": reports,
        "params": torch.cat([parameter.detach().flatten() for parameter in model.parameters()]),
        "overlap": backend.overlap,
        "state_bytes": sum(x.nbytes for x in (*optimizer.master, *optimizer.m, *optimizer.v)),
        "elements": backend.layout.elements,
    }


@pytest.mark.parametrize("network", NETWORKS)
def test_fp32_losses_are_those_of_one_process_within_1e_6(tmp_path: Path, network: str) -> None:
    expected = plain_steps(network, STEPS, torch.float32)
    for size, ranks in run_ranks(follow, [1, 2, 3, 4], tmp_path, network, torch.float32, {}, STEPS).items():
        losses, norms = zip(*ranks[0]["reports"], strict=True)
        np.testing.assert_allclose(losses, [loss for loss, _ in expected], rtol=1e-6, err_msg=f"{size} ranks")
        np.testing.assert_allclose(norms, [norm for _, norm in expected], rtol=1e-4, err_msg=f"{size} ranks")
        for rank in ranks:
            assert rank["reports"] == ranks[0]["reports"]
            assert torch.equal(rank["params"], ranks[0]["params"])
            assert rank["state_bytes"] == 12 * rank["elements"] / size
    assert expected[-1][0] < expected[0][0] - 1, "it learns"


@pytest.mark.parametrize("network", NETWORKS)
def test_bf16_losses_are_those_of_one_process(tmp_path: Path, network: str) -> None:
    """bf16 weights round what fp32 masters keep, so that orders of summation show: 2^-8 of a loss at most."""
    expected = plain_steps(network, STEPS, torch.bfloat16)
    for size, ranks in run_ranks(follow, [1, 2, 3, 4], tmp_path, network, torch.bfloat16, {}, STEPS).items():
        losses = [loss for loss, _ in ranks[0]["reports"]]
        np.testing.assert_allclose(losses, [loss for loss, _ in expected], rtol=2**-8, err_msg=f"{size} ranks")
        assert all(torch.equal(rank["params"], ranks[0]["params"]) for rank in ranks)


@pytest.mark.parametrize("shard_group", [1, 2])
def test_shard_groups_change_nothing(tmp_path: Path, shard_group: int) -> None:
    """Groups of one are plain data parallelism; two groups of two hold the state twice."""
    expected = [loss for loss, _ in plain_steps("mindllm", FEWER_STEPS, torch.float32)]
    config = {"shard_group": shard_group}
    ranks = run_ranks(follow, [4], tmp_path, "mindllm", torch.float32, config, FEWER_STEPS)[4]
    np.testing.assert_allclose([loss for loss, _ in ranks[0]["reports"]], expected, rtol=1e-6)
    for rank in ranks:
        assert torch.equal(rank["params"], ranks[0]["params"])
        assert rank["state_bytes"] == 12 * rank["elements"] / shard_group


def follow_on_nodes(world: World, shard_group: int | None, dtype: torch.dtype) -> dict[str, Any]:
    """`follow`, on nodes of two ranks."""
    nodes = replace(world, local_rank=world.rank % 2, local_world_size=2)
    return follow(nodes, "mindllm", dtype, {"shard_group": shard_group}, FEWER_STEPS)


@pytest.mark.parametrize(("shard_group", "dtype"), [(None, torch.float32), (None, torch.bfloat16), (2, torch.float32)])
def test_nodes_change_nothing(tmp_path: Path, shard_group: int | None, dtype: torch.dtype) -> None:
    """Two nodes of two ranks, which sum on the nodes first and then between them."""
    expected = [loss for loss, _ in plain_steps("mindllm", FEWER_STEPS, dtype)]
    ranks = run_ranks(follow_on_nodes, [4], tmp_path, shard_group, dtype)[4]
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    np.testing.assert_allclose([loss for loss, _ in ranks[0]["reports"]], expected, rtol=tolerance)
    assert all(torch.equal(rank["params"], ranks[0]["params"]) for rank in ranks)


class Chain(nn.Module):
    """Linear layers in an order that may be changed, with the interface that `zero1_step` wants."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layers = nn.ModuleList(nn.Linear(24, 24, bias=False) for _ in range(6))
        self.unused = nn.Parameter(torch.ones(3, 3))
        self.order = list(range(6))

    def forward(
        self, tokens: Tensor, positions: Tensor, offsets: Tensor, targets: Tensor, grad_scale: Any = None
    ) -> Tensor:
        x = torch.nn.functional.one_hot(tokens % 24, 24).float()
        for index in self.order:
            x = x + torch.tanh(self.layers[index](x))
        losses = torch.nn.functional.cross_entropy(x, targets.clamp(min=0) % 24, reduction="none")
        return losses.masked_fill(targets == -100, 0)


ORDERS = [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 2, 0, 5], [1, 0, 3, 2, 5, 4], [0, 1, 2, 3, 4, 5]]


def permuted(world: World) -> dict[str, Any]:
    """A step in each of ORDERS; some layers twice, some not at all. On the second of them, rank 0 alone differs."""
    model = Chain()
    backend = zero1(model, world, bucket_elements=600)
    losses, overlaps = [], []
    for step, order in enumerate(ORDERS):
        model.order = order if world.rank == 0 or step != 1 else ORDERS[0]
        losses.append(zero1_step(model, backend, world, step)[0])
        overlaps.append(backend.overlap)
    backend.wait_for_parameters()
    return {"losses": losses, "overlaps": overlaps, "layers": [layer.weight.detach().clone() for layer in model.layers]}


def test_a_changed_execution_order_stays_right(tmp_path: Path) -> None:
    """Never stale and never lost: the same as one rank whose micro-batches change their order alike."""
    ranks = run_ranks(permuted, [2], tmp_path)[2]
    model = Chain()
    optimizer = torch.optim.AdamW(model.layers.parameters(), lr=3e-3, betas=OPTIM.betas, weight_decay=0.1)
    for step, order in enumerate(ORDERS):
        total = supervised = 0.0
        for number in range(12):
            tokens, targets, positions, offsets = micro_batch(step, number)
            model.order = order if number % 2 == 0 or step != 1 else ORDERS[0]
            total = total + model(tokens, positions, offsets, targets).sum()
            supervised += (targets != -100).sum()
        loss = total / supervised
        loss.backward()
        for layer in model.layers:  # a layer that took no part has a gradient of zero, and decays as the others do
            layer.weight.grad = torch.zeros_like(layer.weight) if layer.weight.grad is None else layer.weight.grad
        nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        assert ranks[0]["losses"][step] == pytest.approx(loss.item(), rel=1e-5)
    for rank in ranks:
        for found, layer in zip(rank["layers"], model.layers, strict=True):
            torch.testing.assert_close(found, layer.weight, rtol=1e-4, atol=1e-6)
        assert rank["overlaps"][0] > 0.6, "in the recorded order, communication overlaps"
        assert rank["overlaps"][1 if rank is ranks[0] else 2] < 0.2, "in another, the metric shows that it does not"
        assert rank["overlaps"][-1] == rank["overlaps"][0]


def second_backward(world: World) -> str:
    model = Chain()
    backend = zero1(model, world, bucket_elements=600)
    tokens, targets, positions, offsets = micro_batch(0, 0)
    try:
        for _ in range(2):
            if not backend.reducing:
                backend.begin_reducing()
            model(tokens, positions, offsets, targets).sum().backward()
    except RuntimeError as error:
        return str(error)
    return "nothing was raised"


def test_a_gradient_that_comes_after_its_bucket_has_gone_raises(tmp_path: Path) -> None:
    for message in run_ranks(second_backward, [1, 2], tmp_path)[2]:
        assert "received a second gradient" in message


class Borrower(nn.Module):
    """Uses the weight of a module that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.owner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) @ self.owner.weight


def test_a_parameter_used_outside_its_module_is_refused() -> None:
    model = Borrower()
    with pytest.raises(ConfigError, match=r"owner\.weight is used outside"):
        record_execution_order(model, lambda: model(torch.ones(2, 4)).sum())
    assert not any(module._forward_pre_hooks for module in model.modules()), "it leaves no hooks behind"


@pytest.mark.parametrize("network", NETWORKS)
def test_the_recorded_order_is_that_of_the_network(network: str) -> None:
    model = NETWORKS[network].build(dtype=torch.float32, seed=1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    tokens, targets, positions, offsets = micro_batch(0, 2)
    order = record_execution_order(model, lambda: model(tokens, positions, offsets, targets=targets).sum())
    assert sorted(order.forward) == sorted(order.gradients) == sorted(name for name, _ in model.named_parameters())
    layers = [int(name.split(".")[1]) for name in order.gradients if name.startswith("layers.")]
    assert layers == sorted(layers, reverse=True)
    assert next(name for name in order.forward if "." not in name) == "embedding"
    assert "embedding" in order.gradients[-3:]
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert parameter.grad is None
        assert torch.equal(parameter, old)


def order_on(device: str) -> ExecutionOrder:
    model = NETWORKS["mindllm"].build(device=device, dtype=torch.bfloat16, seed=1)
    *batch, offsets = micro_batch(0, 2)  # attention reads offsets on the host
    tokens, targets, positions = (x.to(device) for x in batch)
    return record_execution_order(model, lambda: model(tokens, positions, offsets, targets=targets).sum())


def test_the_order_of_a_network_on_the_meta_device() -> None:
    """The simulated cluster lays out networks that are too large for its machine. Kernels run on meta tensors (they
    allocate their results), references do not."""
    select_kernels("triton")
    try:
        assert order_on("meta") == order_on("cpu")
    finally:
        select_kernels("auto")


@pytest.mark.parametrize(
    ("config", "world_size", "message"),
    [
        (DistributedConfig(shard_group=3), 4, "distributed.shard_group: 3 must divide the number of ranks, 4"),
        (DistributedConfig(shard_group=0), 4, "distributed.shard_group"),
        (DistributedConfig(bucket_elements=0), 1, "distributed.bucket_elements: 0 must be at least 1"),
        (DistributedConfig(timeout_minutes=0), 1, "distributed.timeout_minutes"),
    ],
)
def test_impossible_values_are_refused(config: DistributedConfig, world_size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.validate(world_size)


def state_round_trip(world: World, master: str) -> dict[str, Any]:
    """Steps, state read and written into a fresh backend, more steps on both."""
    optim = OptimConfig(lr=3e-3, master=master)
    backends: list[tuple[nn.Module, Zero1]] = []
    for seed in (1, 2):
        model = NETWORKS["gpt_neo"].build(dtype=torch.bfloat16, seed=seed)
        backends.append((model, zero1(model, world, torch.bfloat16, optim)))
    for step in range(3):
        zero1_step(*backends[0], world, step)
    pieces = backends[0][1].pieces()
    state = {kind: [x.clone() for x in tensors] for kind, tensors in backends[0][1].read_state().items()}
    assert all(x.dtype == torch.float32 for x in state["master"])
    assert all(x.shape == (piece.elements,) for piece, x in zip(pieces, state["m"], strict=True))
    backends[1][1].write_state(state, backends[0][1].updates)
    more = [[zero1_step(*backend, world, step) for step in range(3, 6)] for backend in backends]
    return {"more": more, "pieces": [(piece.name, piece.first, piece.stop) for piece in pieces]}


@pytest.mark.parametrize("master", ["fp32", "bf16_and_bits"])
def test_state_written_into_another_backend_goes_on_bit_for_bit(tmp_path: Path, master: str) -> None:
    for ranks in run_ranks(state_round_trip, [1, 3], tmp_path, master).values():
        for rank in ranks:
            assert rank["more"][0] == rank["more"][1]
