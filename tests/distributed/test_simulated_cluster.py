"""The simulated cluster: times by hand, messages and bytes by their formulas, and what a user may get wrong."""

import subprocess
import sys
import time
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.plan_run_memory import highest_rise
from mindllm_engine.distributed.backend import DistributedConfig
from mindllm_engine.distributed.compute_model import MicroBatchSeconds, micro_batch_seconds
from mindllm_engine.distributed.execution_order import definition_order
from mindllm_engine.distributed.layout import Bucket, make_layout
from mindllm_engine.distributed.memory_plan import wire_bytes
from mindllm_engine.distributed.network_model import Group, Network, neighbours, ranks_on_node, strided
from mindllm_engine.distributed.process_group import World
from mindllm_engine.distributed.simulated_cluster import (
    Plan,
    Workload,
    bucket_seconds,
    fit_batch,
    memory_of,
    plan_run,
    quicker_settings,
    record_order,
    take_step,
    ways_to_fit,
)
from mindllm_engine.distributed.step_timeline import BucketSeconds, simulate_step
from mindllm_engine.distributed.zero1 import Zero1
from mindllm_engine.errors import ConfigError
from mindllm_engine.models import NetworkConfig
from mindllm_engine.models.gpt_neo import GPTNeoConfig
from mindllm_engine.models.mindllm import MindLLMConfig
from mindllm_engine.optim.optimizer import OptimConfig
from mindllm_engine.training.hardware_files import read_hardware
from tests.distributed.processes import run_ranks
from tests.training.tiny_run import ROOT, environment

LINKS = Network(read_hardware("h200"))
TOOL = ROOT / "tools" / "plan_run.py"
CONFIG = ROOT / "configs" / "mindllm_3b.yaml"
MINDLLM = MindLLMConfig(vocab_size=512, hidden_size=128, ffn_size=256, n_layers=3, n_heads=2, max_seq_len=64)
GPT_NEO = GPTNeoConfig(vocab_size=512, hidden_size=128, ffn_size=512, n_layers=2, n_heads=2, max_seq_len=64)
SMALL = Workload(MINDLLM, 64, 192, 4, distributed=DistributedConfig(bucket_elements=100_000))


def elements_of(config: NetworkConfig) -> int:
    return sum(prod(parameter.shape) for parameter in config.build(device="meta").parameters())


# The network


def test_a_ring_within_a_node_by_hand():
    links = Network(read_hardware("h100"))  # 450 GB/s, of which 0.8; hops of 3.4 us, 1.9 in LL128 at 0.92
    assert links.ring(8e9, Group(1, 8)) == pytest.approx(8.4e-6 + 7 * 3.4e-6 + 7e9 / 360e9)
    assert links.ring(8e3, Group(1, 8)) == pytest.approx(8.4e-6 + 7 * 1.9e-6 + 7e3 / (360e9 * 0.92))


def test_a_ring_over_nodes_passes_through_all_their_cards():
    links = Network(read_hardware("h100"))  # eight cards of 50 GB/s, of which 0.8
    seconds = links.ring(64e9, Group(8, 8))
    assert seconds == pytest.approx(8.4e-6 + 56 * 3.4e-6 + 7 * 14e-6 + 63e9 / (8 * 40e9))


def test_an_all_to_all_leaves_the_node_through_its_own_card():
    links = Network(read_hardware("h100"))
    assert links.all_to_all(8e9, Group(1, 8)) == pytest.approx(8.4e-6 + 3.4e-6 + 7e9 / 360e9)
    # 63 messages are two rounds of 32; 56 of 64 parts go out.
    assert links.all_to_all(64e9, Group(8, 8)) == pytest.approx(8.4e-6 + 2 * 14e-6 + 56e9 / 40e9)


def test_a_small_sum_takes_the_tree():
    links = Network(read_hardware("h100"))
    assert links.all_reduce(24, Group(64, 8)) == pytest.approx(8.4e-6 + 2 * (7 * 1.9e-6 + 6 * 4e-6), rel=1e-3)


@given(st.integers(1, 12), st.floats(1, 1e11))
def test_a_collective_takes_longer_with_more_bytes_and_nothing_alone(power, size):
    links = LINKS
    group = neighbours(2**power, 8)
    for collective in (links.ring, links.all_to_all, links.all_reduce):
        assert collective(size, Group(1, 1)) == 0
        assert collective(2 * size, group) > collective(size, group) > 0


def test_groups_of_ranks():
    assert neighbours(4, 8) == Group(1, 4)
    assert neighbours(64, 8) == Group(8, 8)
    assert strided(64, 8, 8) == Group(64, 1)  # one rank of each node
    assert strided(16, 2, 8) == Group(4, 4)


def test_a_bucket_over_eight_nodes_by_hand():
    hardware = read_hardware("h100")  # memory moves 0.9 of 3.35 TB/s
    bucket = Bucket(0, 0, 1 << 26, ("w",), True, 64)
    seconds = bucket_seconds(bucket, 64, replace(SMALL, precision="bf16"), Network(hardware), hardware, 64)
    memory, whole, part = 0.9 * 3.35e12, 1 << 26, (1 << 26) / 8
    assert seconds.pack == pytest.approx((4 + 2) * whole * 7 / 8 / memory)
    assert seconds.within == pytest.approx(8.4e-6 + 3.4e-6 + 2 * whole * 7 / 8 / 360e9)
    # On the node: read seven in bf16, write their sum in fp32, read it and this rank's own, write the total; read seven
    # eighths of that in fp32, write them in bf16. After the nodes: as on the node, with an eighth of it.
    node = (7 * 2 + 4 + 4 + 4 + 4) * part + (4 + 2) * part * 7 / 8
    assert seconds.sum == pytest.approx((node + (7 * 2 + 4 + 4 + 4 + 4) * part / 8) / memory)
    assert seconds.across == pytest.approx(8.4e-6 + 14e-6 + 2 * part * 7 / 8 / 40e9)


# The course of a step


LAYOUT = make_layout({"a.w": (64, 64), "b.w": (64, 64)}, ["b.w", "a.w"], 1, 64 * 64)
COMPUTE = MicroBatchSeconds((("", 0.0), ("a", 1.0), ("b", 1.0), ("loss", 1.0)), (("b.w", 2.0), ("a.w", 2.0)), {})


def course(accumulation: int, **changes: float):
    cost = BucketSeconds(**({"pack": 0, "within": 0, "sum": 0, "across": 0, "update": 0, "gather": 0} | changes))
    return simulate_step(COMPUTE, accumulation, LAYOUT, ["a.w", "b.w"], [cost, cost], scalar=0.5, other_update=0.25)


def test_a_step_without_a_network():
    assert [bucket.names for bucket in LAYOUT.buckets] == [("b.w",), ("a.w",)]
    step = course(3)
    assert step.forward_backward == 3 * (3 + 4)
    assert (step.wait_for_gradients, step.wait_for_scalars, step.update) == (0, 0.5, 0.25)


def test_a_reduction_hides_under_what_is_left_of_backward():
    # b's leaves at 2 and ends at 3.5, under a's backward; a's leaves at 4 and ends at 5.5: 1.5 too late.
    assert course(1, within=1.5).wait_for_gradients == 1.5
    # With 3 each the first ends at 5 and the second, which waited for the network, at 8.
    assert course(1, within=3).wait_for_gradients == 4


def test_packing_and_summing_take_the_gpu():
    # b: packed 2 to 2.5, on the network to 4; a: backward to 4.5, packed to 5, on the network to 6.5. Sums follow: b's
    # from 5 to 5.25, then the wait for a's from 5.25 to 6.5.
    step = course(1, pack=0.5, within=1.5, sum=0.25)
    assert step.pack_and_sum == 1.5
    assert step.wait_for_gradients == 1.25


def test_sums_among_groups_come_last():
    # b's slices travel from 4 to 5, when a's backward is over; a's reduction leaves at 4 to 4.5 before them.
    assert course(1, within=0.5, across=1).wait_for_gradients == 2.5


def test_forward_waits_for_the_parameters_of_its_modules():
    # From the update: a is updated to 1 and gathered to 4, b to 2 and gathered to 7. a runs from 4 to 5, b from 7.
    step = course(1, update=1, gather=3)
    assert step.update == 0.25 + 2
    assert step.wait_for_parameters == (4 - 2) + (7 - 5)


def test_the_gpu_waits_where_the_network_is_four_buckets_behind():
    names = [f"layer{index}.w" for index in range(6)]
    layout = make_layout(dict.fromkeys(names, (64, 64)), names, 1, 64 * 64)
    compute = MicroBatchSeconds((), tuple((name, 1.0) for name in names), {})
    cost = BucketSeconds(0, 10, 0, 0, 0, 0)
    step = simulate_step(compute, 1, layout, names, [cost] * 6, 0, 0)
    assert step.total == 1 + 6 * 10  # the network is never idle after the first


# Messages and bytes


def sent_by_kind(plan: Plan) -> dict[str, float]:
    sent: dict[str, float] = {}
    for message in plan.messages:
        sent[message.kind] = sent.get(message.kind, 0.0) + message.sent
    return sent


@pytest.mark.parametrize("config", [MINDLLM, GPT_NEO])
@pytest.mark.parametrize("wire", ["bf16", "fp32"])
@pytest.mark.parametrize("ranks", [4, 24, 64])
def test_bytes_on_the_wire_follow_the_formula(config, wire, ranks):
    """N elements over nodes of L = 8 ranks and M nodes: (L - 1) / L of them on the node, then of the N / L that a rank
    has the sums of, (M - 1) / M between nodes. Fp32 goes by NCCL's own reduce-scatter."""
    workload = replace(SMALL, model=config, distributed=DistributedConfig(wire=wire, bucket_elements=100_000))
    plan = plan_run(workload, read_hardware("h200"), ranks)
    elements, nodes = plan.layout.elements, ranks // 8
    expected = {
        "scalars": 2 * 24 * (ranks - 1) / ranks,
        "all-gather of parameters": 2 * elements * (ranks - 1) / ranks,
        "exchange of gradients": (2 if wire == "bf16" else 4) * elements * (ranks - 1) / ranks,
    }
    if nodes and wire == "bf16":
        expected["exchange of gradients"] = 2 * elements * 7 / 8
        expected["exchange between nodes"] = 2 * elements / 8 * (nodes - 1) / nodes
    assert sent_by_kind(plan) == pytest.approx(expected, rel=1e-12)
    assert len(plan.messages) == len(plan.layout.buckets) * (len(expected) - 1) + 1
    assert elements_of(config) <= plan.layout.elements
    assert sum(slot.stop - slot.start for slot in plan.layout.slots) == elements_of(config)


def test_parts_of_a_bucket_are_told_from_smaller_buckets():
    """An eighth of the embedding's bucket is as large as the bucket of vectors."""
    config = replace(MINDLLM, vocab_size=256)
    plan = plan_run(
        replace(SMALL, model=config, distributed=DistributedConfig(bucket_elements=32_768)), read_hardware("h200"), 64
    )
    sizes = {bucket.stop - bucket.start for bucket in plan.layout.buckets}
    assert any(size // 8 in sizes for size in sizes)
    between = [message for message in plan.messages if message.kind == "exchange between nodes"]
    assert sorted(message.size for message in between) == sorted(
        2 * (bucket.stop - bucket.start) // 8 for bucket in plan.layout.buckets
    )
    assert {message.ranks for message in between} == {8}


def test_groups_of_two_nodes_exchange_between_them_and_then_sum():
    workload = replace(SMALL, distributed=DistributedConfig(shard_group=16, bucket_elements=100_000))
    plan = plan_run(workload, read_hardware("h200"), 64)
    assert sent_by_kind(plan) == {
        "scalars": 2 * 24 * 63 / 64,
        "all-gather of parameters": 2 * plan.layout.elements * 15 / 16,
        "exchange of gradients": 2 * plan.layout.elements * 7 / 8,
        "exchange between nodes": 2 * plan.layout.elements / 8 / 2,
        "sum among shard groups": 2 * 4 * plan.layout.elements / 16 * 3 / 4,
    }


@pytest.mark.parametrize(
    ("gpus", "gpus_per_node", "on_node"), [(1, 8, 1), (8, 8, 8), (12, 8, 12), (16, 8, 8), (6, 1, 6), (6, 2, 2)]
)
def test_ranks_that_exchange_on_a_node(gpus: int, gpus_per_node: int, on_node: int):
    """As ZeRO-1 divides them: nodes only where the group fills several, of several GPUs each."""
    assert ranks_on_node(gpus, gpus_per_node) == on_node
    model = MINDLLM.build(device="meta", dtype=torch.bfloat16)
    _, messages = take_step(model, record_order(model), SMALL, gpus, gpus_per_node)
    exchanges = {(message.kind, message.ranks) for message in messages if message.kind.startswith("exchange")}
    between = {("exchange between nodes", gpus // on_node)} if on_node < gpus else set()
    assert exchanges == ({("exchange of gradients", on_node)} | between if gpus > 1 else set())


def test_shard_groups_add_a_sum_of_slices():
    workload = replace(SMALL, distributed=DistributedConfig(shard_group=8, bucket_elements=100_000))
    plan = plan_run(workload, read_hardware("h200"), 64)
    sums = [message for message in plan.messages if message.kind == "sum among shard groups"]
    assert {message.ranks for message in sums} == {8}
    assert sum(message.size for message in sums) == 4 * plan.layout.elements // 8
    assert {m.ranks for m in plan.messages if m.kind == "all-gather of parameters"} == {8}


def test_one_gpu_sends_nothing():
    plan = plan_run(SMALL, read_hardware("h200"), 1)
    assert plan.messages == ()
    assert plan.step.exposed == 0


def test_the_recorded_order_is_that_of_execution():
    order = record_order(MINDLLM.build(device="meta"))
    assert order.forward[:3] == ("embedding", "embedding_norm", "layers.0.qkv")
    assert order.gradients[0].startswith("layers.2.")
    assert set(order.gradients[-2:]) == {"embedding", "embedding_norm"}


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([1, 2, 3, 8, 48, 64]), st.sampled_from(["fp32", "bf16_and_bits"]))
def test_optimizer_bytes_fall_with_the_ranks(ranks, master):
    workload = replace(SMALL, optim=replace(SMALL.optim, master=master))
    model = MINDLLM.build(device="meta", dtype=torch.bfloat16)
    order = record_order(model)
    layout, _ = take_step(model, order, workload, ranks, 8)
    memory = memory_of(workload, layout, order, 8)
    assert memory.parameters == 2 * layout.elements
    assert memory.gradients == 4 * layout.elements
    assert memory.optimizer * ranks == (12 if master == "fp32" else 10) * layout.elements
    assert memory.peak >= memory.persistent + memory.activations
    padding = ranks * 64 * len(layout.buckets) + 64 * len(layout.slots)
    assert elements_of(MINDLLM) <= layout.elements < elements_of(MINDLLM) + padding


EQUAL = 32_768  # elements of a matrix, and of a bucket
MATRICES = 8


class Chain(nn.Module):
    """Matrices of one size and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(256, EQUAL // 256, bias=False) for _ in range(MATRICES))


class Unhurried(Zero1):
    """Waits after each stage of a reduction until gloo's threads have let go of its tensors, which they do a little
    after it is done."""

    def advance(self, index: int) -> bool:
        is_done = super().advance(index)
        time.sleep(0.05)
        return is_done


def scratch_of_reductions(world: World, cases: list[tuple[torch.dtype, int]]) -> list[int]:
    """The most that a real reduction of all gradients allocates, for each wire and number of ranks on a node."""
    found = []
    for wire, on_node in cases:
        world = replace(world, local_rank=world.rank % on_node, local_world_size=on_node)
        model = Chain()
        order = definition_order(model)
        zero1 = Unhurried(model, world, OptimConfig(), DistributedConfig(bucket_elements=EQUAL), wire, order)
        assert [bucket.stop - bucket.start for bucket in zero1.layout.buckets] == [EQUAL] * MATRICES
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            zero1.begin_reducing()
            for name in order.gradients:
                zero1.finished(name)
            zero1.finish_reducing()
        found.append(highest_rise(profiler))
    return found


def test_scratch_is_what_four_real_ranks_allocate(tmp_path: Path):
    cases = {
        # Sent and received, three quarters each, of four buckets under way; fp32 is sent from where it lies.
        (torch.bfloat16, 4): 4 * (3 + 3) * 2 * EQUAL // 4,
        (torch.float32, 4): 4 * 3 * 4 * EQUAL // 4,
        # Nodes of two: the halves of four buckets, put in order of nodes, and of the four before them sent and received
        # quarters; the sums of which fp32 sends one are two.
        (torch.bfloat16, 2): 4 * (2 + 2) * 2 * EQUAL // 4 + 4 * (1 + 1) * 2 * EQUAL // 4,
        (torch.float32, 2): 4 * (2 + 2) * 4 * EQUAL // 4 + 4 * (2 + 1) * 4 * EQUAL // 4,
    }
    names = [f"layers.{index}.weight" for index in range(MATRICES)]
    layout = make_layout(dict.fromkeys(names, (EQUAL // 256, 256)), names, 4, EQUAL)
    ranks = run_ranks(scratch_of_reductions, [4], tmp_path, list(cases))[4]
    for number, ((wire, on_node), expected) in enumerate(cases.items()):
        assert max(wire_bytes(layout, wire.itemsize, on_node, on_gpu=False)) == expected
        measured = [rank[number] for rank in ranks]
        # Gloo may still hold what a bucket has sent while the bucket is summed.
        assert all(expected <= found <= expected + EQUAL * wire.itemsize for found in measured), (wire, on_node, ranks)


def test_compute_adds_up_to_flops_at_full_efficiency():
    hardware = read_hardware("h200")
    ideal = {name: replace(constant, value=1.0) for name, constant in hardware.constants().items() if "effi" in name}
    infinite = replace(hardware.memory_bandwidth, value=1e30)
    model = MINDLLM.build(device="meta")
    order = record_order(model)
    seconds = micro_batch_seconds(
        model, order.forward, order.gradients, 256, 64, replace(hardware, memory_bandwidth=infinite, **ideal)
    )
    attention = 12 * 3 * 128 * 64
    flops = 256 * (model.flops_per_token(64) - attention / 2)  # the masked half is not computed
    assert (seconds.forward_total + seconds.backward_total) * 989e12 == pytest.approx(flops)


# Batches


@given(st.integers(1, 4000), st.integers(1, 12), st.integers(1, 600))
def test_a_batch_that_the_gpus_can_share(batch, micro, gpus):
    fitted, notes = fit_batch(replace(SMALL, global_batch_size=batch, micro_batch_size=micro), gpus)
    share, rest = divmod(fitted.global_batch_size, gpus)
    assert rest == 0
    assert share % fitted.micro_batch_size == 0
    assert fitted.micro_batch_size <= micro
    assert abs(fitted.global_batch_size - batch) <= gpus
    assert all(share % size for size in range(fitted.micro_batch_size + 1, micro + 1))
    changed = (fitted.global_batch_size, fitted.micro_batch_size) != (batch, micro)
    assert bool(notes) == changed


def test_what_would_make_it_fit():
    hardware = read_hardware("h200")
    workload = replace(SMALL, micro_batch_size=3)
    needed = plan_run(workload, hardware, 64).memory.peak
    little = replace(hardware, memory_bytes=replace(hardware.memory_bytes, value=needed - 1))
    plan = plan_run(workload, little, 64)
    assert not plan.fits
    assert "train.micro_batch_size 1" in ways_to_fit(plan)


def test_shard_groups_are_proposed_where_the_network_is_slow():
    config = MindLLMConfig(vocab_size=32000, hidden_size=1024, ffn_size=2048, n_layers=8, n_heads=8, max_seq_len=512)
    plan = plan_run(Workload(config, 512, 512, 1), read_hardware("h200"), 512)
    text, other = quicker_settings(plan)[0]
    assert "distributed.shard_group 8" in text
    assert other.mfu > plan.mfu


# The tool


def plan(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), "--config", str(CONFIG), *options],
        capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=240,
    )  # fmt: skip


def test_plan_of_mindllm_3b(tmp_path: Path):
    result = plan("--gpus", "512", "--gpu", "h200", "--plot", str(tmp_path / "plan.png"))
    assert result.returncode == 0, result.stderr
    lines = {line[:30].strip(): line[30:].split() for line in result.stdout.splitlines()}
    assert lines["GPUs"] == ["8", "64", "512", "4,096"]
    assert "nearest GPUs that can: 3072" in result.stdout
    assert float(lines["parameters"][0]) == pytest.approx(2 * 3.174e9 / 2**30, rel=1e-3)
    assert float(lines["optimizer"][0]) == pytest.approx(12 * 3.174e9 / 8 / 2**30, rel=1e-3)
    assert "* gemm_efficiency" in result.stdout
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpu", "h300"], ["gpu: h300", "a100", "b200", "h100", "h200"]),
        (["--gpus", "0"], ["gpus: 0", "at least 1"]),
        (["--gpus", "512", "--micro_batch_size", "4"], ["micro_batch_size", "512 GPUs x 4", "3, 6"]),
        (["--gpus", "500", "--micro_batch_size", "1"], ["500 GPUs", "384, 512"]),
        (["--micro_batch_size", "0"], ["micro_batch_size: 0"]),
        (["--tokens", "0"], ["tokens: 0"]),
        (["--gemm_efficiency", "1.5"], ["gemm_efficiency: 1.5", "at most 1"]),
        (["--distributed.shard_group", "3"], ["distributed.shard_group: 3"]),
        (["--gpuz", "8"], ["gpuz", "did you mean"]),
    ],
)
def test_bad_input_is_one_line(options: list[str], words: list[str]):
    result = plan(*options)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert all(word in result.stderr for word in words), result.stderr


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("peak_flops", {"value": 0, "source": "x"}, ["peak_flops", "above 0"]),
        ("gemm_efficiency", {"value": 2, "source": "x"}, ["gemm_efficiency", "at most 1"]),
        ("memory_bytes", {"value": 1e9, "source": " "}, ["memory_bytes", "source"]),
        ("memory_bytes", {"value": 1e9}, ["memory_bytes.source"]),
        ("memory_bites", {"value": 1e9, "source": "x"}, ["memory_bites", "did you mean memory_bytes"]),
    ],
)
def test_a_machine_of_ones_own_is_checked(tmp_path: Path, key: str, change: dict, words: list[str]):
    content = yaml.safe_load((ROOT / "configs" / "hardware" / "h200.yaml").read_text())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    assert read_hardware(str(path)).name == "H200"
    path.write_text(yaml.safe_dump(content | {key: change}))
    with pytest.raises(ConfigError) as error:
        read_hardware(str(path))
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("name", ["a100", "b200", "h100", "h200"])
def test_the_machines_that_ship(name):
    hardware = read_hardware(name)
    assert hardware.name == name.upper()
    assert all(constant.source for constant in hardware.constants().values())
