"""The layout of ZeRO-1's buffers: properties over random networks, orders, worlds and buckets; no process group."""

from itertools import pairwise
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mindllm_engine.distributed.execution_order import definition_order
from mindllm_engine.distributed.layout import ALIGNMENT, Layout, make_layout
from mindllm_engine.models.gpt_neo import GPTNeoConfig
from mindllm_engine.models.mindllm import MindLLMConfig

SHAPES = st.lists(st.lists(st.integers(1, 90), min_size=0, max_size=3).map(tuple), min_size=1, max_size=12)


Case = tuple[Layout, dict[str, tuple[int, ...]], list[str], int, dict[str, float]]


@st.composite
def layouts(draw: st.DrawFn) -> Case:
    shapes = {f"p{number}": shape for number, shape in enumerate(draw(SHAPES))}
    order = draw(st.permutations(list(shapes)))
    bucket_elements = draw(st.sampled_from([1, 700, 5_000, 1 << 25]))
    lr_scales = draw(st.dictionaries(st.sampled_from(order), st.sampled_from([0.5, 0.25])))
    layout = make_layout(shapes, order, draw(st.integers(1, 9)), bucket_elements, lr_scales)
    return layout, shapes, order, bucket_elements, lr_scales


@settings(max_examples=300, deadline=None)
@given(layouts())
def test_every_element_lies_in_exactly_one_slice(
    case: Case,
) -> None:
    layout, shapes, _, _, _ = case
    covered = {name: [0] * prod(shape) for name, shape in shapes.items()}
    flat = [0] * layout.elements
    for shard in range(layout.shards):
        for piece in layout.pieces(shard):
            assert 0 <= piece.first < piece.stop <= prod(shapes[piece.name])
            assert piece.shape == shapes[piece.name]
            for element in range(piece.elements):
                covered[piece.name][piece.first + element] += 1
                flat[piece.flat + element] += 1
    assert all(set(counts) == {1} for counts in covered.values())
    assert sum(flat) == sum(prod(shape) for shape in shapes.values())
    assert max(flat) == 1


@settings(max_examples=300, deadline=None)
@given(layouts())
def test_buckets_and_slices_are_aligned_and_in_order(
    case: Case,
) -> None:
    layout, shapes, order, bucket_elements, lr_scales = case
    assert [bucket.index for bucket in layout.buckets] == list(range(len(layout.buckets)))
    border = 0
    for bucket in layout.buckets:
        assert bucket.start == border
        border = bucket.stop
        assert bucket.slice_elements > 0
        assert bucket.slice_elements % ALIGNMENT == 0
        parts = [bucket.slice_of(shard) for shard in range(layout.shards)]
        assert parts[0].start == bucket.start
        assert parts[-1].stop == bucket.stop
        assert all(one.stop == other.start for one, other in pairwise(parts))
        if bucket.decays:
            unit = layout.shards * ALIGNMENT
            assert bucket.stop - bucket.start <= max(unit, bucket_elements)
        inside = {s.name for s in layout.slots if s.start < bucket.stop and s.stop > bucket.start}
        assert inside <= set(bucket.names)
        assert all((len(shapes[name]) >= 2) == bucket.decays for name in bucket.names)
        assert all(lr_scales.get(name, 1.0) == bucket.lr_scale for name in bucket.names)
    assert layout.shard_elements * layout.shards == layout.elements == border
    for slot in layout.slots:
        assert slot.start % ALIGNMENT == 0
        assert slot.stop - slot.start == prod(slot.shape)
    kind_of = {name: (len(shape) >= 2, lr_scales.get(name, 1.0)) for name, shape in shapes.items()}
    for kind in set(kind_of.values()):
        names = [slot.name for slot in layout.slots if kind_of[slot.name] == kind]
        assert names == [name for name in order if kind_of[name] == kind]
    matrices = [len(slot.shape) >= 2 for slot in layout.slots]
    assert matrices == sorted(matrices, reverse=True), "vectors come last"


@settings(max_examples=100, deadline=None)
@given(layouts())
def test_padding_is_small(case: Case) -> None:
    layout, shapes, _, _, _ = case
    used = sum(prod(shape) for shape in shapes.values())
    assert layout.elements - used < ALIGNMENT * (len(shapes) + layout.shards * len(layout.buckets))


def test_a_parameter_larger_than_a_bucket_is_cut() -> None:
    layout = make_layout({"small": (10, 10), "large": (100, 100)}, ["small", "large"], 2, bucket_elements=4096)
    assert [(b.start, b.stop, b.names) for b in layout.buckets] == [
        (0, 128, ("small",)),
        (128, 4224, ("large",)),
        (4224, 8320, ("large",)),
        (8320, 10240, ("large",)),
    ]


def test_the_real_networks_waste_nothing() -> None:
    for config in (MindLLMConfig(125_700, 2560, 8192, 32, 20, 2048), GPTNeoConfig()):
        model = config.build(device="meta", dtype=torch.bfloat16)
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        for world in (8, 64, 512, 4096):
            layout = make_layout(shapes, definition_order(model).gradients, world, 1 << 25)
            assert layout.elements < model.num_parameters() * (1 + 1e-4 + world * 64 * len(layout.buckets) / 1e9)
            assert sum(slot.stop - slot.start for slot in layout.slots) == model.num_parameters()


def test_scales_of_1_change_nothing_and_others_part_the_buckets() -> None:
    shapes = {"a": (10, 10), "b": (10, 10), "c": (10, 10), "norm": (10,)}
    plain = make_layout(shapes, list(shapes), 2, 1 << 20)
    assert make_layout(shapes, list(shapes), 2, 1 << 20, dict.fromkeys(shapes, 1.0)) == plain
    scaled = make_layout(shapes, list(shapes), 2, 1 << 20, {"a": 0.5, "c": 0.5})
    assert [(b.names, b.lr_scale, b.decays) for b in scaled.buckets] == [
        (("a", "c"), 0.5, True),
        (("b",), 1.0, True),
        (("norm",), 1.0, False),
    ]


def test_tied_parameters_lie_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 5), "b": nn.Linear(4, 5)})
    model["b"].weight = model["a"].weight
    order = definition_order(model)
    assert sorted(order.gradients) == ["a.bias", "a.weight", "b.bias"]


@pytest.mark.parametrize("order", [["a"], ["a", "a", "b"], ["a", "c"], []])
def test_an_order_that_is_not_one_is_refused(order: list[str]) -> None:
    with pytest.raises(ValueError, match="each parameter once"):
        make_layout({"a": (2, 2), "b": (3,)}, order, 1, 100)
