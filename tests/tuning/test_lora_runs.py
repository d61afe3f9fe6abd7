"""Tuning with LoRA by the command: what checkpoints hold, resuming, ranks, merging, and peft's use of the adapter."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import GPTNeoForCausalLM

from mindllm_engine.errors import CheckpointError, ConfigError
from mindllm_engine.evaluation.gpt_neo_checkpoint import save_hf_checkpoint
from mindllm_engine.models import Network
from mindllm_engine.models.gpt_neo import GPTNeo
from mindllm_engine.training.checkpoint import load_state, newest_checkpoint
from mindllm_engine.training.export import export_weights
from mindllm_engine.training.weights import load_adapted, load_model
from mindllm_engine.tuning.merging import merge_run
from tests.models.packing import pack
from tests.training.tiny_run import records as metrics
from tests.tuning.tiny_tuning import TOKENIZER_IDS, base_run, launch, sums, tune_here, write_records, write_tuning

CPU = torch.device("cpu")
LORA = {"rank": 4, "alpha": 8.0}


@pytest.fixture(scope="module", params=["mindllm", "gpt_neo"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_run(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def tuning(tmp_path: Path, base: Path) -> Path:
    path = write_records(tmp_path / "en.jsonl", sums(120, 1))
    return write_tuning(tmp_path, base, {"sums": {"path": str(path)}}, tuning__lora=LORA, optim__lr=1e-2)


def trained(run: Path) -> dict[str, torch.Tensor]:
    model, _ = load_adapted(run, CPU)
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def logits(model: Network) -> torch.Tensor:
    with torch.no_grad():
        return model(*pack([30, 20], TOKENIZER_IDS)[:3])


def test_a_lora_run_trains_and_merges(tuning: Path, base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tune_here(tuning)
    run = tuning.parent / "run"
    heldout = [record["heldout_loss"] for record in metrics(run) if "heldout_loss" in record]
    assert heldout[-1] < heldout[0] - 0.05
    assert "logits drift by" in capfd.readouterr().err

    # The checkpoint holds the additions alone and names the base.
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    names = json.loads((checkpoint / "index.json").read_bytes())["tensors"]
    assert {name.split("/")[0] for name in names} == {"master", "m", "v", "generator"}
    assert all("_lora_" in name for name in names if not name.startswith("generator"))
    state = load_state(checkpoint)
    assert state.adapters["rank"] == 4
    assert Path(state.adapters["base"]) == newest_checkpoint(base / "checkpoints")

    # Merged: a run folder of its own, with the logits of the network and its additions, and the rest of the base.
    adapted, merged = load_adapted(run, CPU)[0], load_model(run / "merged", CPU)[0]
    assert (logits(merged) - logits(adapted)).abs().max() < 1e-4
    assert (logits(merged) - logits(load_model(base, CPU)[0])).abs().max() > 1e-2
    assert torch.equal(logits(merged), logits(load_model(run, CPU)[0]))
    assert torch.equal(merged.embedding, load_model(base, CPU)[0].embedding)
    for name in ("tokenizer.model", "chat_template.json"):
        assert (run / "merged" / name).read_bytes() == (run / name).read_bytes()
    assert yaml.safe_load((run / "merged" / "config.yaml").read_text())["run"]["dir"] == str(run / "merged")

    # The tool makes the same again, in the place of what is there; the whole network can be exported, the run not.
    before = {path: path.read_bytes() for path in sorted((run / "merged").rglob("*")) if path.is_file()}
    again = launch("merge_lora.py", "--run", str(run))
    assert again.returncode == 0, again.stderr
    assert "logits drift by" in again.stdout
    assert before == {path: path.read_bytes() for path in sorted((run / "merged").rglob("*")) if path.is_file()}
    assert not list(run.glob(".*"))
    export_weights(run / "merged", tuning.parent / "all.safetensors", torch.float32, lambda _: None)
    exported = load_file(tuning.parent / "all.safetensors")
    assert all(torch.equal(exported[name], parameter) for name, parameter in merged.named_parameters())
    with pytest.raises(CheckpointError, match=r"make .*merged by tools/merge_lora\.py --run"):
        export_weights(run, tuning.parent / "none.safetensors", torch.float32, lambda _: None)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_lora_run_learns_the_same(tuning: Path) -> None:
    found = {}
    for compiled in ("false", "true"):
        run = tuning.parent / compiled
        tune_here(tuning, "--run.dir", str(run), "--train.steps", "6", "--train.compile", compiled)
        found[compiled] = [line["loss"] for line in metrics(run) if "loss" in line]
    assert found["true"]
    assert found["true"] != found["false"], "nothing was compiled"
    assert found["true"] == pytest.approx(found["false"], rel=1e-3)


def test_a_lora_run_is_exported_whole(tuning: Path) -> None:
    """By the tool, before it is merged, and with the same weights as the merged run."""
    tune_here(tuning)
    run, out = tuning.parent / "run", tuning.parent / "out"
    for source in (run, run / "merged"):
        done = launch("export_hf.py", "--run", str(source), "--out", str(out / source.name), "--dtype", "fp32")
        assert done.returncode == 0, done.stderr
    lora, merged = (load_file(out / name / "model.safetensors") for name in ("run", "merged"))
    assert lora.keys() == merged.keys()
    assert all(torch.equal(tensor, merged[name]) for name, tensor in lora.items())
    refused = launch("export_weights.py", "--run", str(run), "--out", str(out / "run.safetensors"))
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "merge_lora.py" in refused.stderr


def test_the_reported_drift_is_that_of_the_logits(tuning: Path) -> None:
    tune_here(tuning)
    run = tuning.parent / "run"
    report = merge_run(run)
    # A checkpoint stands for its run.
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    files = sorted(path.name for path in checkpoint.iterdir())
    assert merge_run(checkpoint) == report
    assert sorted(path.name for path in checkpoint.iterdir()) == files
    assert 0 < report.drift_mean < report.drift_max < 1e-4
    assert 64 < report.tokens <= 1024


def test_peft_reads_the_adapter_onto_the_exported_base(tuning: Path, base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    tune_here(tuning)
    run = tuning.parent / "run"
    ours = load_adapted(run, CPU)[0]
    if not isinstance(ours, GPTNeo):
        assert not (run / "adapter").exists()
        return
    plain = load_model(base, CPU)[0]
    assert isinstance(plain, GPTNeo)
    save_hf_checkpoint(plain, tmp_path / "hf")
    theirs = PeftModel.from_pretrained(GPTNeoForCausalLM.from_pretrained(tmp_path / "hf"), str(run / "adapter")).eval()
    tokens, positions, cu_seqlens, _ = pack([40], TOKENIZER_IDS)
    with torch.no_grad():
        expected = theirs(tokens[None]).logits[0]
        assert (ours(tokens, positions, cu_seqlens) - expected).abs().max() < 1e-5
        assert (plain(tokens, positions, cu_seqlens) - expected).abs().max() > 1e-2


def test_a_lora_run_goes_on_where_it_was_stopped_bit_for_bit(tuning: Path) -> None:
    tune_here(tuning)
    stopped = tuning.parent / "stopped"
    tune_here(tuning, "--run.dir", str(stopped), "--train.stop_after", "3")
    assert not (stopped / "merged").exists()
    tune_here(tuning, "--run.dir", str(stopped))
    expected, found = trained(tuning.parent / "run"), trained(stopped)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert any("_lora_b" in name and value.any() for name, value in found.items())
    assert torch.equal(logits(load_model(stopped, CPU)[0]), logits(load_model(tuning.parent / "run", CPU)[0]))


def test_two_ranks_give_the_losses_of_one(tuning: Path) -> None:
    tune_here(tuning)
    two = tuning.parent / "two"
    done = launch("tune.py", "--config", str(tuning), "--run.dir", str(two), ranks=2)
    assert done.returncode == 0, done.stderr
    for one, other in zip(metrics(tuning.parent / "run"), metrics(two), strict=True):
        for key in {"loss", "grad_norm", "heldout_loss"} & one.keys():
            assert one[key] == pytest.approx(other[key], rel=1e-5), key


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_deepspeed_gives_the_losses_of_our_own(tuning: Path, precision: str) -> None:
    pytest.importorskip("deepspeed")
    tune_here(tuning, "--train.precision", precision)
    theirs = tuning.parent / "deepspeed"
    options = ["--run.dir", str(theirs), "--distributed.backend", "deepspeed", "--train.precision", precision]
    done = launch("tune.py", "--config", str(tuning), *options)
    assert done.returncode == 0, done.stderr
    for one, other in zip(metrics(tuning.parent / "run"), metrics(theirs), strict=True):
        for key in {"loss", "heldout_loss"} & one.keys():
            assert one[key] == pytest.approx(other[key], rel=1e-5 if precision == "fp32" else 2**-7), key
    assert (theirs / "merged").exists()


def test_bf16_trains(tuning: Path) -> None:
    tune_here(tuning, "--train.precision", "bf16")
    losses = [record["heldout_loss"] for record in metrics(tuning.parent / "run") if "heldout_loss" in record]
    assert losses[-1] < losses[0]


def test_a_lora_run_is_a_base_itself(tuning: Path, tmp_path: Path) -> None:
    tune_here(tuning)
    second = write_tuning(
        tmp_path / "second", tuning.parent / "run", {"sums": {"path": str(tmp_path / "en.jsonl")}}, tuning__lora=LORA
    )
    tune_here(second)
    first_loss = [record["heldout_loss"] for record in metrics(tuning.parent / "run") if "heldout_loss" in record]
    second_loss = [
        record["heldout_loss"] for record in metrics(tmp_path / "second" / "run") if "heldout_loss" in record
    ]
    assert second_loss[0] == pytest.approx(first_loss[-1], rel=1e-5)
    assert second_loss[-1] < second_loss[0]


def test_refuses_to_go_on_with_something_else(tuning: Path, base: Path) -> None:
    run = tuning.parent / "run"
    tune_here(tuning, "--train.stop_after", "2")
    with pytest.raises(CheckpointError, match=r"adapters.rank was 4 and is 8.*tuning.lora"):
        tune_here(tuning, "--tuning.lora.rank", "8")
    with pytest.raises(CheckpointError, match=r"adapters.base_hash was \w+ and is None.*tuning.lora"):
        tune_here(tuning, "--tuning.lora", "null")
    with pytest.raises(ConfigError, match=r"run.init_from: missing"):
        tune_here(tuning, "--run.init_from", "null")
    other = base_run(tuning.parent / "other", "mindllm" if "mindllm" in str(base) else "gpt_neo", steps=2)
    with pytest.raises(CheckpointError, match=r"base_hash was .*run.init_from"):
        tune_here(tuning, "--run.init_from", str(other))
    with pytest.raises(CheckpointError, match="nothing to merge"):
        merge_run(base)
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None


def test_says_where_the_base_has_gone(tmp_path: Path) -> None:
    base = base_run(tmp_path / "base")
    path = write_records(tmp_path / "en.jsonl", sums(60, 1))
    config = write_tuning(tmp_path, base, {"sums": {"path": str(path)}}, tuning__lora=LORA, train__steps=1)
    tune_here(config)
    base.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"LoRA's additions to .*base.* which is missing or has changed; restore"):
        load_model(tmp_path / "run", CPU)
    load_model(tmp_path / "run" / "merged", CPU)


def test_refuses_a_larger_vocabulary_and_an_impossible_rank(tuning: Path, base: Path) -> None:
    larger = yaml.safe_load((base / "config.yaml").read_text())["model"]
    larger = {name: sizes | {"vocab_size": 400} for name, sizes in larger.items() if sizes}
    with pytest.raises(ConfigError, match=r"tuning.lora: the embedding is frozen.* 352 rows.* 400"):
        tune_here(tuning, "--model", json.dumps(larger))
    with pytest.raises(ConfigError, match=r"tuning.lora.rank: 65"):
        tune_here(tuning, "--tuning.lora.rank", "65")
    with pytest.raises(ConfigError, match=r"tuning.lora.alpha"):
        tune_here(tuning, "--tuning.lora.alpha", "0")
