"""Runs whose blocks differ, and plans that are edited between a stop and going on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from mindllm_engine.errors import CheckpointError, ConfigError
from mindllm_engine.training.checkpoint import sealed
from tests.training.tiny_run import losses, records, train_here, write_config, write_tokens

# 21 samples of 32 tokens and 75 of 16: the border lies within the third step, and within a micro-batch of two.
BLOCKS = [
    {"tokens": 21 * 32, "languages": {"zh": 1, "en": 1.5}, "order": "chunked", "samples_per_chunk": 2},
    {"seq_len": 16, "order": "blocked", "weights": {"en": 2, "zh": 1}},
]


def test_blocks_of_other_lengths_and_orders(tmp_path: Path) -> None:
    config = write_config(tmp_path, data__blocks=BLOCKS)
    train_here(config, "--run.dir", str(tmp_path / "whole"))
    steps = [record for record in records(tmp_path / "whole") if "loss" in record]
    samples = [8 * step for step in range(1, 13)]
    assert [record["tokens"] for record in steps] == [32 * min(n, 21) + 16 * max(0, n - 21) for n in samples]
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.15, "it learns"
    for stop in ("2", "3", "6"):
        folder = ("--run.dir", str(tmp_path / f"stopped_{stop}"))
        train_here(config, *folder, "--train.stop_after", stop)
        train_here(config, *folder)
        assert losses(tmp_path / f"stopped_{stop}") == losses(tmp_path / "whole")


def test_micro_batches_do_not_matter_at_the_border_of_blocks(tmp_path: Path) -> None:
    config = write_config(tmp_path, data__blocks=BLOCKS)
    for micro_batch in ("1", "8"):
        train_here(config, "--run.dir", str(tmp_path / micro_batch), "--train.micro_batch_size", micro_batch)
    one, eight = losses(tmp_path / "1"), losses(tmp_path / "8")
    for left, right in zip(one, eight, strict=True):
        assert left == pytest.approx(right, rel=5e-6)


def blocks_option(*blocks: dict[str, Any]) -> tuple[str, str]:
    return "--data.blocks", json.dumps(blocks)


def test_later_blocks_may_be_edited_and_appended(tmp_path: Path) -> None:
    first = {"tokens": 32 * 32, "weights": {"en": 1, "zh": 1}}
    config = write_config(tmp_path, data__blocks=[first, {"order": "shuffled"}])
    for folder in ("plain", "edited"):
        train_here(config, "--run.dir", str(tmp_path / folder), "--train.stop_after", "4")
    train_here(config, "--run.dir", str(tmp_path / "plain"))
    edited = blocks_option(first, {"tokens": 32 * 32, "order": "blocked", "languages": {"zh": 1}}, {"seq_len": 8})
    train_here(config, "--run.dir", str(tmp_path / "edited"), *edited)
    plain, other = records(tmp_path / "plain"), records(tmp_path / "edited")
    assert [r["loss"] for r in plain if r.get("lr")][:4] == [r["loss"] for r in other if r.get("lr")][:4]
    fifth = next(record for record in other if record["step"] == 5)
    assert "loss/zh" in fifth
    assert "loss/en" not in fifth


def test_order_of_sources_may_change_and_others_may_come(tmp_path: Path) -> None:
    weights = {"tokens": 96 * 32, "weights": {"en": 1, "zh": 1}}
    config = write_config(tmp_path, data__blocks=[weights])
    train_here(config, "--run.dir", str(tmp_path / "whole"))
    train_here(config, "--train.stop_after", "5")
    write_tokens(tmp_path / "news", "en", documents=300, seed=7)
    content = yaml.safe_load(config.read_text())
    content["data"]["sources"] = {name: str(tmp_path / name) for name in ("zh", "news", "en")}
    config.write_text(yaml.safe_dump(content, sort_keys=False))
    train_here(config)
    assert [row[:2] for row in losses(tmp_path / "run")] == [row[:2] for row in losses(tmp_path / "whole")]


def test_a_changed_past_is_refused_with_the_difference(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    train_here(config, "--train.stop_after", "4")
    state = tmp_path / "run" / "checkpoints" / "step_00000004" / "state.json"
    saved = state.read_text()
    for options, message in (
        (blocks_option({"seq_len": 16}), r"block 0 has begun, and its seq_len was 32 and is 16; restore it"),
        (blocks_option({"tokens": 100 * 32}), r"quota of en was \d+ and is \d+; .* append a block to data\.blocks"),
        (("--train.steps", "13"), r"needs 72 samples more and the plan has 64 left; append a block .*, tokens: 3072"),
        (blocks_option({"languages": {"zh": 1}}), r"block 0 has begun, and its quota of en was \d+ and is 0"),
    ):
        with pytest.raises(CheckpointError, match=message):
            train_here(config, *options)
    older = json.loads(saved)
    del older["plan"]["version"]
    state.write_bytes(sealed(older))
    with pytest.raises(CheckpointError, match="version of the addressing was 1 and is 2"):
        train_here(config)
    state.write_text(saved)
    write_tokens(tmp_path / "zh", "zh", documents=300, seed=8)
    with pytest.raises(CheckpointError, match="source zh, read by block 0: its content has changed"):
        train_here(config)


def refused(config: Path, *options: str) -> str:
    with pytest.raises(ConfigError) as caught:
        train_here(config, *options)
    assert not (config.parent / "run").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_two_sources_under_one_name(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    text = config.read_text()
    assert "  sources:\n    en: " in text
    config.write_text(text.replace("  sources:\n", f"  sources:\n    en: {tmp_path}/zh\n"))
    assert refused(config) == f"{config}: the key en is given twice in one mapping; keep one"


def test_one_token_file_under_two_names(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    again = f"{tmp_path}/other/../en"
    (tmp_path / "other").mkdir()
    message = refused(
        config, "--data.sources", json.dumps({"en": str(tmp_path / "en"), "en2": again}), "--data.heldout={}"
    )
    assert message == f"data.sources: en and en2 are the same token file, {again}; keep one"
    shutil.rmtree(tmp_path / "other")
    (tmp_path / "linked.bin").symlink_to(tmp_path / "en.bin")
    linked = json.dumps({"en": str(tmp_path / "en"), "en2": str(tmp_path / "linked")})
    assert "en and en2 are the same token file" in refused(config, "--data.sources", linked)


def test_unknown_packing_is_named(tmp_path: Path) -> None:
    config = write_config(tmp_path, data__packing="best")
    assert "data.packing" in refused(config)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"languages": {"fr": 1}}, "data.blocks[0].languages: unknown language fr; the languages are en, zh"),
        ({"categories": {"newz": 1}}, "data.blocks[0].categories: unknown category newz; did you mean news?"),
        ({"weights": {"en_newz": 1}}, "data.blocks[0].weights: unknown source en_newz; did you mean en_news?"),
        ({"max_epochs_of": {"en_newz": 1}}, "data.blocks[0].max_epochs_of: unknown source en_newz"),
        ({"languages": {"zh": 1}, "weights": {"en_news": 1}}, "its language en has no share in languages"),
        ({"tokens": 5}, "data.blocks[0].tokens: 5 is less than one sample of 32 tokens"),
        ({"seq_len": 64}, "data.blocks[0].seq_len: 64 is longer than the model's max_seq_len = 32"),
    ],
)
def test_plans_are_checked_before_text_is_tokenised(tmp_path: Path, block: dict[str, Any], message: str) -> None:
    config = write_config(tmp_path)
    content = yaml.safe_load(config.read_text())
    (tmp_path / "text.jsonl").write_text('{"text": "a b c"}\n')
    text = {"path": str(tmp_path / "text.jsonl"), "category": "news"}
    content["corpus"] = {
        "dir": str(tmp_path / "corpus"), "tokenizer_vocab_size": 97, "tokenizer_train_bytes": 1000, "holdout": 0.1,
        "sources": {"en_news": text | {"lang": "en"}, "zh_news": text | {"lang": "zh"}},
    }  # fmt: skip
    content["data"] = {"seq_len": 32, "blocks": [block]}
    config.write_text(yaml.safe_dump(content))
    assert message in refused(config)
    assert not (tmp_path / "corpus").exists()
