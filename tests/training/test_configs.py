"""The configs that ship: each parses and is possible, and the real ones hold the numbers of the paper."""

from pathlib import Path

import pytest

from mindllm_engine.command_line import config_to_yaml, parse_arguments
from mindllm_engine.distributed.execution_order import definition_order
from mindllm_engine.distributed.layout import make_layout
from mindllm_engine.models.minicpm import MiniCPM
from mindllm_engine.optim.schedules import learning_rate
from mindllm_engine.training.config import RunConfig
from tests.training.tiny_run import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def load(name: str) -> RunConfig:
    return parse_arguments(RunConfig, "", ["--config", str(ROOT / "configs" / f"{name}.yaml")])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_valid_and_survives_saving(path: Path, tmp_path: Path) -> None:
    config = load(path.stem)
    config.validate(world_size=1)
    (tmp_path / "saved.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    assert parse_arguments(RunConfig, "", ["--config", str(tmp_path / "saved.yaml")]) == config


@pytest.mark.parametrize(
    ("name", "parameters"), [("mindllm_3b", 3_174_085_120), ("mindllm_1.3b_monolingual", 1_315_575_808)]
)
def test_parameters_of_the_real_networks(name: str, parameters: int) -> None:
    model = load(name).model.build(device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_parameters_begin_where_128_bit_accesses_want_them(path: Path) -> None:
    model = load(path.stem).model.build(device="meta")
    config = load(path.stem)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for world_size in (1, 3, 64):
        layout = make_layout(shapes, definition_order(model).gradients, world_size, config.distributed.bucket_elements)
        assert all(slot.start % 64 == 0 for slot in layout.slots)
        assert all(bucket.slice_of(1 % world_size).start % 64 == 0 for bucket in layout.buckets)


@pytest.mark.parametrize(("name", "millions"), [("gpt_neo", 11), ("mindllm", 11)])
def test_the_networks_of_the_stages(name: str, millions: int) -> None:
    files = [str(ROOT / "configs" / "stages" / f"{part}.yaml") for part in ("corpus", name)]
    config = parse_arguments(RunConfig, "", ["--config", files[0], "--config", files[1]])
    config.validate(world_size=2)
    assert round(config.model.build(device="meta").num_parameters() / 1e6) == millions
    assert config.corpus is not None
    assert config.corpus.tokenizer_special_tokens


def test_real_text_has_at_least_8_million_parameters() -> None:
    assert load("real_text").model.build(device="meta").num_parameters() >= 8_000_000


def test_mindllm_3b_is_the_papers() -> None:
    config = load("mindllm_3b")
    assert config.optim.betas == (0.9, 0.95)
    assert (config.optim.eps, config.optim.weight_decay, config.optim.clip_grad_norm) == (1e-8, 0.1, 1.0)
    assert (config.optim.lr, config.optim.schedule.min_lr, config.optim.schedule.warmup_steps) == (3e-4, 3e-5, 16_000)
    assert config.train.steps == 80_000
    tokens_per_step = config.train.global_batch_size * config.data.seq_len
    assert tokens_per_step == 3072 * 2048
    assert tokens_per_step * config.train.steps == pytest.approx(503e9, rel=0.01)


@pytest.mark.parametrize(("name", "non_embedding"), [("1.2b", 1_247_442_432), ("2.4b", 2_442_057_984)])
def test_minicpm_is_the_papers(name: str, non_embedding: int) -> None:
    """Table 2 to the parameter; a half-life of 5,000 steps in the decay."""
    config = load(f"minicpm_{name}")
    model = config.model.build(device="meta")
    assert isinstance(model, MiniCPM)
    assert model.num_parameters() - model.embedding.numel() == non_embedding
    assert model.config.head_dim == 64
    assert config.train.global_batch_size * config.data.seq_len == pytest.approx(3.93e6, rel=1e-3)
    assert config.train.global_batch_size * config.data.seq_len * config.train.steps == pytest.approx(1.1e12, rel=1e-3)
    steps, schedule = config.train.steps, config.optim.schedule
    rates = [learning_rate(schedule, config.optim.lr, steps - 1 - back, steps) for back in (0, 5000, 10_000)]
    assert [rates[1] / rates[0], rates[2] / rates[1]] == pytest.approx([2, 2], rel=1e-3)
    assert learning_rate(schedule, config.optim.lr, steps // 2, steps) == 0.01


def test_mindllm_1_3b_is_the_papers() -> None:
    first, second = load("mindllm_1.3b_monolingual"), load("mindllm_1.3b_transfer")
    for config in (first, second):
        assert config.optim.betas == (0.9, 0.999)
        assert (config.optim.eps, config.optim.weight_decay, config.optim.clip_grad_norm) == (1e-8, 0.1, 1.0)
        assert config.data.seq_len == 1024
    assert (first.optim.schedule.kind, first.optim.lr) == ("constant", 5e-5)
    assert (first.train.steps, first.train.global_batch_size) == (101_100, 1536)
    assert (second.optim.lr, second.optim.schedule.min_lr, second.optim.schedule.warmup_steps) == (5e-4, 5e-5, 4000)
    assert (second.train.steps, second.train.global_batch_size) == (105_900, 1512)
    assert second.run.init_from == first.run.dir
