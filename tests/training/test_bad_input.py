"""Bad input: one clear line naming file, key or record, exit code 2, and nothing half-written."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import yaml

from mindllm_engine.errors import CheckpointError, ConfigError, DataError, MindLLMError
from mindllm_engine.training.checkpoint import verify
from tests.training.tiny_run import command, environment, launch, losses, train_here, write_config, write_tokens


def edit(path: Path, change: Callable[[bytearray], None]) -> None:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def refused(config: Path, *options: str) -> str:
    """The message of a run that must be refused before it writes anything."""
    with pytest.raises(MindLLMError) as caught:
        train_here(config, *options)
    assert not (config.parent / "run").exists(), "nothing is written before the input is found good"
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train.stepz", "5"], r"command line: unknown key train\.stepz; did you mean train\.steps\?"),
        (["--trian.steps", "5"], r"unknown key trian; did you mean train\?"),
        (
            ["--model.mindllm.n_layer", "5"],
            r"unknown key model\.mindllm\.n_layer; did you mean model\.mindllm\.n_layers\?",
        ),
        (["--train.steps", "many"], r"train\.steps: expected an? int"),
        (["--optim.lr", "fast"], r"optim\.lr: expected a float"),
        (["--train.precision", "fp8"], r"train\.precision: .*bf16"),
        (["--model.mindllm.n_layers", "two"], r"model\.mindllm\.n_layers.*int"),
        (["--train.steps", "0"], r"train\.steps: 0 must be at least 1"),
        (["--train.global_batch_size", "7"], r"train\.global_batch_size: 7 is not a multiple of .* = 2 x 1"),
        (["--model.mindllm.hidden_size", "33"], r"n_heads 2 does not divide model\.mindllm\.hidden_size 33"),
        (["--model.mindllm.vocab_size", "50"], r"vocabulary"),
        (["--data.seq_len", "64"], r"data\.seq_len: 64 is longer than the model's max_seq_len = 32"),
        (["--data.blocks", "[]"], r"data\.blocks: a plan needs one block"),
        (["--data.blocks", '[{"weights": {"fr": 1.0}}]'], r"unknown source fr; the sources are en, zh"),
        (["--optim.lr", "-1"], r"optim\.lr: -1\.0 must be a finite number above 0"),
        (["--optim.master", "bf16_and_bits"], r"optim\.master: bf16_and_bits needs train\.precision bf16, got fp32"),
        (["--run.init_from", "nowhere"], r"nowhere: holds no checkpoint"),
        (["--data.tokenizer", "nowhere.model"], r"nowhere\.model"),
        (["--run.dir", "/dev/null/run"], r"run\.dir: '/dev/null/run' cannot be opened \(.*Not a directory"),
    ],
)
def test_impossible_options(tmp_path: Path, options: list[str], message: str) -> None:
    assert re.search(message, refused(write_config(tmp_path), *options))


def test_unknown_key_in_a_file_names_the_file_and_the_nearest(tmp_path: Path) -> None:
    config = write_config(tmp_path, optim__schedule={"kind": "linear", "warm_up_steps": 3})
    assert refused(config) == (
        f"{config}: unknown key optim.schedule.warm_up_steps; did you mean optim.schedule.warmup_steps?"
    )
    config = write_config(tmp_path, data__blocks=[{"tokens": 640, "ordr": "shuffled"}])
    assert "unknown key data.blocks[0].ordr; did you mean data.blocks[0].order?" in refused(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"mindllm": {"vocab_size": 97}}}, r"missing key model\.mindllm\.hidden_size; it has no default"),
        ({"model": {"mindllm": {}}}, r"missing key model\.mindllm\.vocab_size"),
        ({"model": {}}, r"model names no network"),
        ({"model": None}, r"model: expected a mapping of keys to values, found nothing"),
        ({"optim": None}, r"optim: expected a mapping of keys to values, found nothing"),
        ({"optim": 5}, r"optim: expected a mapping of keys to values, found int 5"),
        ({"data": {"seq_len": 32, "blocks": [None]}}, r"data\.blocks\[0\]: expected a mapping"),
        ({"data": {"seq_len": 32, "sources": {}, "heldout": None}}, r"data\.sources"),
        ({"corpus": {"dir": "x", "sources": {"a": {"path": "b"}}}}, r"missing key corpus\.sources\.a\.lang"),
        ({"corpus": []}, r"corpus: expected a mapping of keys to values, found list"),
        ({"run": {"dir": ""}}, r"run\.dir: '' is not a folder"),
        ({"run": {"dir": "run", "seed": 10**30}}, r"run\.seed: 10+ must lie in"),
        ({"optim": {"lr": float("inf")}}, r"optim\.lr: inf must be a finite number"),
        ({"optim": {"clip_grad_norm": float("nan")}}, r"optim\.clip_grad_norm: nan must be a finite number"),
    ],
)
def test_sections_of_the_wrong_kind(tmp_path: Path, change: dict[str, object], message: str) -> None:
    config = write_config(tmp_path)
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | change))
    assert re.search(message, refused(config))


def test_an_option_may_complete_a_file(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    content = yaml.safe_load(config.read_text())
    del content["model"]["mindllm"]["ffn_size"]
    del content["train"]["steps"]
    config.write_text(yaml.safe_dump(content))
    train_here(config, "--model.mindllm.ffn_size", "48", "--train.steps=2")
    assert losses(tmp_path / "run")[-1][0] == 2


def test_a_key_given_twice(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    config.write_text(config.read_text() + "train: {steps: 3}\n")
    assert refused(config) == f"{config}: the key train is given twice in one mapping; keep one"


def test_mistakes_are_found_before_text_is_tokenised(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    content = yaml.safe_load(config.read_text())
    (tmp_path / "text.jsonl").write_text('{"text": "a b c"}\n')
    corpus = {
        "dir": str(tmp_path / "corpus"), "tokenizer_vocab_size": 300, "tokenizer_train_bytes": 1000, "holdout": 0.1,
        "sources": {"news": {"path": str(tmp_path / "text.jsonl"), "lang": "en", "category": "news"}},
    }  # fmt: skip
    big = {"mindllm": content["model"]["mindllm"] | {"vocab_size": 300}}
    for change, message in (
        ({}, "corpus.tokenizer_vocab_size: 300 is larger than the model's vocab_size = 97"),
        ({"model": big, "data": {"seq_len": 32, "blocks": [{"weights": {"newz": 1.0}}]}}, "unknown source newz"),
        ({"model": big, "run": content["run"] | {"init_from": "nowhere"}}, "nowhere: holds no checkpoint"),
        ({"model": big, "corpus": corpus | {"sources": {"a b": corpus["sources"]["news"]}}}, "name is 'a b'"),
    ):
        config.write_text(yaml.safe_dump(content | {"data": {"seq_len": 32}, "corpus": corpus} | change))
        assert message in refused(config)
        assert not (tmp_path / "corpus").exists()


def test_config_that_is_no_yaml_or_missing(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert "cannot read the config file" in refused(tmp_path / "no.yaml")
    config.write_text("run: {dir: [")
    assert "not a YAML file" in refused(config)
    config.write_text("- a list")
    assert "expected a mapping" in refused(config)
    config.write_text(yaml.safe_dump({"run": {"dir": str(tmp_path / "run")}}))
    assert "missing key model" in refused(config)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "en.bin").unlink(), r"en\.bin: missing"),
        (lambda folder: (folder / "en.idx").unlink(), r"en\.idx: missing"),
        (lambda folder: (folder / "en.json").unlink(), r"en\.json: missing"),
        (lambda folder: (folder / "en.bin").write_bytes(b""), r"en\.bin"),
        (lambda folder: (folder / "en.idx").write_bytes(b""), r"en\.idx"),
        (lambda folder: edit(folder / "en.bin", lambda content: content.__delitem__(slice(-7, None))), r"en\.bin"),
        (lambda folder: edit(folder / "en.idx", lambda content: content.__delitem__(slice(-9, None))), r"en\.idx"),
        (lambda folder: shutil.copy(folder / "zh.idx", folder / "en.idx"), r"en\."),
        (lambda folder: (folder / "en.json").write_text("{"), r"en\.json: malformed"),
        (lambda folder: write_tokens(folder / "zh", "zh", 300, 1, "b" * 16), r"zh: made with tokenizer b+, not a+"),
        (lambda folder: write_tokens(folder / "en", "en", 1, 0), r"source en: \d+ tokens are fewer"),
    ],
)  # fmt: skip
def test_damaged_token_files(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    config = write_config(tmp_path, data__seq_len=60, model__mindllm__max_seq_len=60)
    damage(tmp_path)
    assert re.search(message, refused(config))


@pytest.mark.parametrize("name", ["en", "en.heldout"])
def test_token_beyond_the_vocabulary_names_the_document(tmp_path: Path, name: str) -> None:
    config = write_config(tmp_path, train__steps=100)  # more than an epoch
    edit(tmp_path / f"{name}.bin", lambda content: content.__setitem__(slice(40, 42), b"\xff\xff"))
    with pytest.raises(DataError, match=rf"{name}\.bin: token id 65535 at position \d+ of document \d+"):
        train_here(config)


@pytest.mark.parametrize("log_every", ["1", "1000"])
def test_weights_that_are_lost_end_the_run(tmp_path: Path, log_every: str) -> None:
    config = write_config(tmp_path, optim__clip_grad_norm=0.0, train__checkpoint_every=1, train__keep_checkpoints=0)
    expected = r"step 21: loss or gradient of 5 steps in a row .* after going back to step 1 3 times; lower optim\.lr"
    with pytest.raises(MindLLMError, match=expected):
        train_here(
            config, "--optim.lr", "1e30", "--optim.schedule.kind", "constant", "--train.steps", "40",
            "--train.log_every", log_every,
        )  # fmt: skip
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        verify(checkpoint)
        for file in checkpoint.glob("*.safetensors"):
            assert all(tensor.isfinite().all() for tensor in safetensors.torch.load_file(file).values())


@pytest.mark.parametrize("ranks", [1, 2])
def test_one_line_and_exit_code_2(tmp_path: Path, ranks: int) -> None:
    config = write_config(tmp_path)
    done = launch(config, "--train.stepz", "5", ranks=ranks)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert errors == ["error: command line: unknown key train.stepz; did you mean train.steps?"]
    if ranks == 1:
        assert done.returncode == 2
        assert done.stderr.strip().splitlines() == errors
    else:
        assert re.search(r"exitcode\s*: 2", done.stderr), done.stderr


def test_a_mistake_that_only_another_rank_meets_is_printed(tmp_path: Path) -> None:
    program = (
        "from mindllm_engine import command_line, errors\n"
        "def main(): raise errors.DataError('x.bin: damaged')\n"
        "command_line.run_tool(main)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment() | {"RANK": "1", "WORLD_SIZE": "2"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "error: x.bin: damaged\n")


def limit_file_size() -> None:
    """Make writes beyond 40 kB fail as on a full disk, instead of by a signal."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))


def check_full_disk(tmp_path: Path, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 2, done.stderr
    assert "step_00000008: cannot save the checkpoint" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000004"]


def test_full_disk_under_torchrun_is_one_line_too(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    train_here(config, "--train.stop_after", "4")
    done = subprocess.run(
        command(config, ranks=2),
        env=environment(), capture_output=True, text=True, preexec_fn=limit_file_size, timeout=120,
    )  # fmt: skip
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]  # torchrun's report repeats it
    assert "cannot save" in line
    assert done.returncode != 0
    assert "Connection closed" not in done.stderr
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000004"]


def test_full_disk_while_saving_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    train_here(config, "--train.stop_after", "4")
    done = subprocess.run(
        command(config), env=environment(), capture_output=True, text=True, preexec_fn=limit_file_size, timeout=120
    )
    check_full_disk(tmp_path, done)
    train_here(config)
    train_here(config, "--run.dir", str(tmp_path / "whole"))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_file_system_that_is_really_full(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    train_here(config, "--train.stop_after", "4")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=450k", "tmpfs", str(tmp_path / "run")], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not allow mounting a file system")
    try:
        done = launch(config, "--train.checkpoint_every", "4")
        assert done.returncode == 2, done.stderr
        assert "No space left" in done.stderr.splitlines()[-1]
        kept = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
        assert len(kept) == 1
        assert kept[0].startswith("step_")
    finally:
        subprocess.run(["umount", str(tmp_path / "run")], check=True)


def test_vocabulary_smaller_than_the_tokenizers_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match="96"):
        train_here(write_config(tmp_path, model__mindllm__vocab_size=96))


def test_starting_from_another_network_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    train_here(config, "--train.stop_after", "2")
    with pytest.raises(CheckpointError, match=r"n_layers was 2 and is 3"):
        train_here(
            config,
            "--run.init_from",
            str(tmp_path / "run"),
            "--run.dir",
            str(tmp_path / "b"),
            "--model.mindllm.n_layers",
            "3",
        )
