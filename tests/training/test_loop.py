"""The loop against a plain one with torch.optim.AdamW, and what it leaves in the run folder."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mindllm_engine.command_line import parse_arguments
from mindllm_engine.data.loader import Loader
from mindllm_engine.optim.schedules import learning_rate
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.loop import pretrain
from mindllm_engine.training.setup import open_data
from mindllm_engine.training.weights import load_model
from tests.training.tiny_run import VOCAB, launch, records, train_here, write_config

GPT_NEO = {
    "gpt_neo": {
        "vocab_size": VOCAB, "hidden_size": 32, "ffn_size": 64, "n_layers": 2, "n_heads": 2, "max_seq_len": 32,
        "window_size": 8,
    }
}  # fmt: skip


@pytest.mark.parametrize("network", ["mindllm", "gpt_neo"])
def test_follows_a_plain_loop(tmp_path: Path, network: str) -> None:
    """50 steps in fp32 by four micro-batches stay within 1e-5 of one batch, torch's cross-entropy, clipping and
    AdamW."""
    overrides = {"model": GPT_NEO} if network == "gpt_neo" else {}
    path = write_config(tmp_path, train__steps=50, **overrides)
    train_here(path)
    config = parse_arguments(RunConfig, "", ["--config", str(path)])
    data = open_data(config)
    loader = Loader(data.plan, data.sources, VOCAB, rank=0, world_size=1)
    model = config.model.build(device=torch.device("cpu"), dtype=torch.float32, seed=config.run.seed)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=config.optim.betas, eps=config.optim.eps)
    expected = []
    for step in range(config.train.steps):
        batch = loader.read(np.arange(step * 8, (step + 1) * 8))
        logits = model(batch.tokens, batch.positions, batch.cu_seqlens)
        loss = F.cross_entropy(logits, batch.targets, ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.optim.schedule, config.optim.lr, step, config.train.steps)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    found = [record["loss"] for record in records(tmp_path / "run") if "loss" in record]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[-1] < found[0] - 0.5, "it learns"


def test_bf16_follows_fp32(tmp_path: Path) -> None:
    config = write_config(tmp_path, train__steps=60)
    for precision in ("fp32", "bf16"):
        train_here(config, "--train.precision", precision, "--run.dir", str(tmp_path / precision))
    ends = [records(tmp_path / precision)[-1]["heldout_loss"] for precision in ("fp32", "bf16")]
    assert ends[1] == pytest.approx(ends[0], rel=0.02)


def test_metrics_have_the_fixed_fields(tmp_path: Path) -> None:
    train_here(write_config(tmp_path))
    rows = records(tmp_path / "run")
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 13))
    for row in steps:
        assert set(row) >= {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "mfu", "memory"}
        assert row["tokens"] == row["step"] * 8 * 32
        assert {"loss/en", "loss/zh"} & set(row)
        assert 0 < row["mfu"] < 1.5
    evaluated = [row for row in rows if "heldout_loss" in row]
    assert [row["step"] for row in evaluated] == [0, 6, 12]
    assert evaluated[-1]["heldout_bpb/en"] < evaluated[0]["heldout_bpb/en"]


def test_heldout_loss_is_the_models(tmp_path: Path) -> None:
    """The last held-out record is what the saved network gives, scored here with torch's cross-entropy, a document
    at a time within each row of seq_len."""
    path = write_config(tmp_path)
    train_here(path)
    config = parse_arguments(RunConfig, "", ["--config", str(path)])
    model, _ = load_model(tmp_path / "run", torch.device("cpu"))
    file = open_data(config).heldout[0]
    assert file is not None
    stream = torch.from_numpy(file.read(0, file.tokens).astype(np.int64))
    starts = (np.cumsum(file.lengths) - file.lengths).tolist()
    cuts = sorted({*starts, *range(0, file.tokens, 32), file.tokens})
    nats = count = 0.0
    for begin, end in itertools.pairwise(cuts):
        targets = stream[begin + 1 : end + 1].clone()
        if end in starts or end == file.tokens:
            targets = targets[: end - begin - 1]
        if len(targets) == 0:
            continue
        length = end - begin
        logits = model(stream[begin:end], torch.arange(length), torch.tensor([0, length], dtype=torch.int32))
        nats += F.cross_entropy(logits[: len(targets)], targets, reduction="sum").item()
        count += len(targets)
    assert count == file.tokens - file.documents
    assert records(tmp_path / "run")[-1]["heldout_loss/en"] == pytest.approx(nats / count, rel=1e-5)
    assert records(tmp_path / "run")[-1]["heldout_bpb/en"] == pytest.approx(
        nats / np.log(2) / file.manifest.text_bytes, rel=1e-5
    )


def test_tensorboard_reads_the_same_records(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_here(write_config(tmp_path, train__tensorboard=True))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    logged = {event.step: event.value for event in events.Scalars("loss")}
    assert logged == pytest.approx({row["step"]: row["loss"] for row in records(tmp_path / "run") if "loss" in row})


def test_starts_from_another_runs_weights_with_a_larger_vocabulary(tmp_path: Path) -> None:
    config = write_config(tmp_path, train__steps=30)
    train_here(config)
    second = ["--run.init_from", str(tmp_path / "run"), "--run.dir", str(tmp_path / "second")]
    train_here(config, *second, "--model.mindllm.vocab_size", "120", "--train.steps", "2")
    before, after = records(tmp_path / "run")[-1], records(tmp_path / "second")[0]
    assert after["step"] == 0
    assert before["heldout_loss"] <= after["heldout_loss"] < before["heldout_loss"] + 1.0


def test_two_ranks_report_progress_and_losses_by_source(tmp_path: Path) -> None:
    done = launch(write_config(tmp_path, train__steps=4), ranks=2)
    assert done.returncode == 0, done.stderr
    assert "step 4/4  loss" in done.stderr
    assert [row["step"] for row in records(tmp_path / "run") if "loss" in row] == [1, 2, 3, 4]


def test_sections_of_code_can_be_called_as_a_library(tmp_path: Path) -> None:
    """`pretrain` twice in one process: nothing of the first run lingers in the second."""
    path = write_config(tmp_path)
    config = parse_arguments(RunConfig, "", ["--config", str(path)])
    pretrain(config)
    config.run.dir = str(tmp_path / "second")
    pretrain(config)
    first, second = ([row["loss"] for row in records(tmp_path / name) if "loss" in row] for name in ("run", "second"))
    assert first == second
