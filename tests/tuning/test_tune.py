"""Supervised tuning by the command: the run folder, resuming, ranks, what is refused, and that answers are learnt."""

from pathlib import Path

import orjson
import pytest
import torch
import yaml

from mindllm_engine.command_line import parse_arguments
from mindllm_engine.corpus.chat_template import load_template
from mindllm_engine.corpus.open_tokenizer import open_tokenizer
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.weights import load_model
from tests.training.tiny_run import records as metrics
from tests.tuning.tiny_tuning import (
    base_run,
    launch,
    read_tuning,
    tune_here,
    two_sources,
    write_tuning,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_run(tmp_path_factory.mktemp("base"))


@pytest.fixture
def tuning(tmp_path: Path, base: Path) -> Path:
    return write_tuning(tmp_path, base, two_sources(tmp_path))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(run, CPU)[0].named_parameters())


def test_the_command_makes_a_run_folder_that_all_tools_read(tuning: Path, base: Path) -> None:
    done = launch("tune.py", "--config", str(tuning))
    assert done.returncode == 0, done.stderr
    assert "tuning: sums_en: " in done.stderr
    run = tuning.parent / "run"
    assert (run / "tokenizer.model").read_bytes() == (base / "tokenizer.model").read_bytes()
    config = parse_arguments(RunConfig, "", ["--config", str(run / "config.yaml")])
    assert config.model.mindllm is not None
    assert config.model.mindllm.hidden_size == 64  # of the base run, which the tuning did not repeat
    assert config.data.packing == "best_fit"
    template = load_template(run, open_tokenizer(run / "tokenizer.model"))
    assert template.config == read_tuning(tuning).tuning.template
    records = metrics(run)
    assert {"loss/sums_en", "loss/sums_zh"} <= set().union(*records)
    heldout = [record for record in records if "heldout_loss" in record]
    assert heldout[-1]["heldout_loss"] < heldout[0]["heldout_loss"]
    for tool, options in (
        ("generate.py", ["--run", str(run), "--max-new-tokens", "4"]),
        ("inspect_data.py", ["--config", str(run / "config.yaml")]),
        ("chat.py", ["--run", str(run), "--prompt", "Add the numbers. 3 and 4", "--max-new-tokens", "8"]),
        ("inspect_tuning_data.py", ["--config", str(run / "tuning.yaml")]),
    ):
        looked = launch(tool, *[option.replace("-new-t", "_new_t") for option in options])
        assert looked.returncode == 0, looked.stderr


def test_tuning_yaml_starts_the_same_tuning_again(tuning: Path) -> None:
    tune_here(tuning)
    run, other = tuning.parent / "run", tuning.parent / "other"
    tune_here(run / "tuning.yaml", "--run.dir", str(other))
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(run).items())
    assert len(list((tuning.parent / "tokens").glob("sums_*"))) == 2  # the token files were found again


def test_a_tuning_goes_on_where_it_was_stopped_bit_for_bit_and_without_its_origin(tuning: Path, base: Path) -> None:
    tune_here(tuning)
    stopped = str(tuning.parent / "stopped")
    tune_here(tuning, "--run.dir", stopped, "--train.stop_after", "3")
    tune_here(tuning, "--run.dir", stopped, "--run.init_from", "/nowhere")
    expected = weights(tuning.parent / "run")
    assert all(torch.equal(value, expected[name]) for name, value in weights(Path(stopped)).items())


def test_two_ranks_give_the_losses_of_one(tuning: Path) -> None:
    tune_here(tuning)
    two = str(tuning.parent / "two")
    done = launch("tune.py", "--config", str(tuning), "--run.dir", two, ranks=2)
    assert done.returncode == 0, done.stderr
    for one, other in zip(metrics(tuning.parent / "run"), metrics(Path(two)), strict=True):
        for key in ("loss", "grad_norm", "heldout_loss", "heldout_bpb", "loss/sums_en", "heldout_loss/sums_zh"):
            assert one.get(key, 0.0) == pytest.approx(other.get(key, 0.0), rel=1e-5), key


def test_weights_mix_the_sources(tuning: Path) -> None:
    tune_here(tuning, "--data.blocks", "[{weights: {sums_en: 1, sums_zh: 3}, max_epochs: 100}]", "--train.steps", "4")
    config = parse_arguments(RunConfig, "", ["--config", str(tuning.parent / "run" / "config.yaml")])
    assert config.data.blocks[0].weights == {"sums_en": 1, "sums_zh": 3}
    state = orjson.loads(next((tuning.parent / "run" / "checkpoints").glob("*/state.json")).read_bytes())
    assert sorted(state["plan"]["blocks"][0]["quotas"].values()) == [8, 24]


def refused(config: Path, *options: str) -> str:
    with pytest.raises((ConfigError, DataError)) as caught:
        tune_here(config, *options)
    assert "\n" not in str(caught.value)
    assert not (config.parent / "run").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run.init_from", "null"], "run.init_from: missing"),
        (["--tuning.heldout", "1"], "tuning.heldout: 1.0 is a share"),
        (["--tuning.records", "{a/b: {path: x}}"], "name is 'a/b'"),
        (["--tuning.records", "{a: {path: /nowhere.jsonl}}"], "/nowhere.jsonl: the records cannot be read"),
        (["--tuning.template.assistant", "<|assistant|>"], "template.assistant"),
        (["--tuning.template.user", "{content}</s>"], "</s> stands around a question"),
        (["--tuning.template.assistant", "</s>{content}"], "a </s> in it is not learnt"),
        (["--data.tokenizer", "x"], "data.tokenizer: give tuning.tokenizer"),
        (["--data.sources", "{a: b}"], "data.sources: a tuning makes"),
        (["--data.seq_len", "128"], "longer than the model's max_seq_len"),
        (["--data.seq_len", "8"], "no record is left to train on; sums_en: dropped 120: longer than 9 tokens"),
        (["--train.global_batch_size", "9"], "not a multiple"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_anything_is_written(
    tuning: Path, options: list[str], message: str
) -> None:
    assert message in refused(tuning, *options)


def test_a_tokenizer_that_does_not_belong_to_the_checkpoint_is_refused(tuning: Path, tmp_path: Path) -> None:
    other = base_run(tmp_path / "other", steps=1, special_tokens=False)
    message = refused(tuning, "--tuning.tokenizer", str(other / "tokenizer.model"))
    assert "does not belong to" in message
    message = refused(tuning, "--run.init_from", str(other))
    assert "has no special token <|system|>" in message
    plain = ["--tuning.template.system", "{content}\n", "--tuning.template.user", "Q: {content}\n"]
    tune_here(
        tuning, "--run.init_from", str(other), *plain, "--tuning.template.assistant", "A: {content}\n",
        "--train.steps", "1",
    )  # fmt: skip


def test_a_lost_mask_is_never_trained_over(tuning: Path) -> None:
    tune_here(tuning, "--train.steps", "1", "--run.dir", str(tuning.parent / "first"))
    folder = next((tuning.parent / "tokens").glob("sums_en-*"))
    (folder / "train.mask").unlink()
    assert "train.mask" in refused(tuning)


def test_a_stop_amid_the_records_leaves_nothing_that_looks_complete(tuning: Path) -> None:
    (tuning.parent / "zh.jsonl.gz").write_bytes((tuning.parent / "zh.jsonl.gz").read_bytes()[:-30])
    assert "zh.jsonl.gz: ends in the middle" in refused(tuning)
    folder = next((tuning.parent / "tokens").glob("sums_zh-*"))
    assert list(folder.iterdir()) == []


def test_config_yaml_goes_on_with_the_run_under_pretrain(tuning: Path) -> None:
    tune_here(tuning, "--train.stop_after", "3")
    run = tuning.parent / "run"
    done = launch("pretrain.py", "--config", str(run / "config.yaml"), "--train.stop_after", "null")
    assert done.returncode == 0, done.stderr
    assert metrics(run)[-1]["step"] == 6
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["steps"] == 6
