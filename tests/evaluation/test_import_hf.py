"""GPT-Neo checkpoints of any origin, and our own exports, as run folders: bit for bit, and of use to every tool."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
import sentencepiece
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoForCausalLM
from transformers import GPTNeoConfig as HFConfig

from mindllm_engine.corpus.chat_template import TemplateConfig, load_template
from mindllm_engine.corpus.open_tokenizer import TextTokenizer
from mindllm_engine.corpus.tokenizer import Tokenizer
from mindllm_engine.errors import CheckpointError, DataError, MindLLMError
from mindllm_engine.evaluation.export.export_run import export_run
from mindllm_engine.evaluation.export.import_hf import import_checkpoint, save_weights
from mindllm_engine.evaluation.export.tensor_files import write_tensors
from mindllm_engine.evaluation.export.tokenizer_json import tokenizer_json
from mindllm_engine.evaluation.generation import generate
from mindllm_engine.evaluation.gpt_neo_checkpoint import config_from_hf
from mindllm_engine.models import ModelConfig
from mindllm_engine.training.weights import load_model_for_inference
from tests.corpus.conftest import make_documents
from tests.evaluation.exported_runs import logits_of, make_config, make_run, train_byte_level, train_sentencepiece
from tests.training.tiny_run import ROOT, environment, train_here, write_config, write_tokens


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return train_byte_level(tmp_path_factory.mktemp("byte_level"))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_sentencepiece(tmp_path_factory.mktemp("sentencepiece"))


def silent(_: int) -> None:
    pass


def foreign(folder: Path, tokenizer: TextTokenizer, **options: Any) -> GPTNeoForCausalLM:
    """What Transformers writes of a GPT-Neo of its own, with that tokenizer."""
    torch.manual_seed(4)
    config = HFConfig(
        vocab_size=tokenizer.vocab_size + 5,
        hidden_size=32,
        num_layers=4,
        num_heads=2,
        max_position_embeddings=320,
        attention_types=[[["global", "local"], 2]],
        attn_implementation="eager",
    )
    model = GPTNeoForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder, **options)
    (folder / "tokenizer.json").write_bytes(tokenizer.model_path.read_bytes())
    return model


def as_pickles(folder: Path) -> None:
    """Turn safetensors, whole or in shards, into the pickles that GPT-Neo was published as."""
    for path in folder.glob("*.safetensors"):
        torch.save(load_file(path), folder / path.name.replace("model", "pytorch_model").replace("safetensors", "bin"))
        path.unlink()
    index = folder / "model.safetensors.index.json"
    if index.exists():
        text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        (folder / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_foreign_gpt_neo_is_the_same_network(
    byte_level: TextTokenizer, tmp_path: Path, pickled: bool, sharded: bool
) -> None:
    theirs = foreign(tmp_path / "hf", byte_level, **({"max_shard_size": "50KB"} if sharded else {}))
    if pickled:
        as_pickles(tmp_path / "hf")
    suffix = "bin" if pickled else "safetensors"
    assert (len(list((tmp_path / "hf").glob(f"*.{suffix}"))) > 1) == sharded
    import_checkpoint(tmp_path / "hf", tmp_path / "run")
    ours, tokenizer = load_model_for_inference(str(tmp_path / "run"))
    assert tokenizer.hash == byte_level.hash
    tokens = torch.randint(0, byte_level.vocab_size, (300,))
    with torch.inference_mode():
        assert (logits_of(ours, tokens) - theirs(tokens[None]).logits[0]).abs().max() < 1e-5
    export_run(tmp_path / "run", tmp_path / "again", torch.float32, silent)
    state = theirs.state_dict()
    for name, tensor in load_file(tmp_path / "again" / "model.safetensors").items():
        assert torch.equal(tensor, state.pop(name)), name
    assert list(state) == ["lm_head.weight"]
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == byte_level.model_path.read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("network", ["gpt_neo", "mindllm"])
def test_export_import_export_is_bit_identical(
    pieces: Tokenizer, tmp_path: Path, network: str, dtype: torch.dtype
) -> None:
    make_run(tmp_path / "run", network, pieces, TemplateConfig(), padding_rows=3)
    export_run(tmp_path / "run", tmp_path / "first", dtype, silent)
    import_checkpoint(tmp_path / "first", tmp_path / "imported")
    export_run(tmp_path / "imported", tmp_path / "second", dtype, silent)
    names = sorted(str(path.relative_to(tmp_path / "first")) for path in (tmp_path / "first").rglob("*.*"))
    assert len(names) == {"gpt_neo": 9, "mindllm": 11}[network]
    for name in names:
        if name != "README.md":
            assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    _, tokenizer = load_model_for_inference(str(tmp_path / "imported"))
    assert tokenizer.hash == pieces.hash
    assert load_template(tmp_path / "imported", tokenizer).config == TemplateConfig()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "first", trust_remote_code=True, dtype="auto")
    assert loaded.dtype == dtype


def test_shards_are_read_by_transformers_and_by_us(pieces: Tokenizer, tmp_path: Path) -> None:
    model = make_run(tmp_path / "run", "mindllm", pieces)
    export_run(tmp_path / "run", tmp_path / "hf", torch.float32, silent)
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "model.safetensors").unlink()
    write_tensors(tmp_path / "hf", tensors, torch.float32, silent, shard_bytes=100_000)
    files = sorted((tmp_path / "hf").glob("*.safetensors"))
    assert len(files) > 2
    for file in files:
        assert sum(tensor.nbytes for tensor in load_file(file).values()) <= 100_000 or len(load_file(file)) == 1
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=True, dtype=torch.float32).eval()
    tokens = torch.arange(3, 200)
    with torch.inference_mode():
        assert (theirs(tokens[None]).logits[0] - logits_of(model, tokens)).abs().max() < 1e-5
    import_checkpoint(tmp_path / "hf", tmp_path / "back")
    back, _ = load_model_for_inference(str(tmp_path / "back"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))
    files[1].unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-.*is missing"):
        import_checkpoint(tmp_path / "hf", tmp_path / "other")


@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "millions"), [(12, 768, 12, 125), (24, 2048, 16, 1316), (32, 2560, 20, 2651)]
)
def test_the_published_configurations_are_read(layers: int, hidden: int, heads: int, millions: int) -> None:
    """EleutherAI's config.json of 125M, 1.3B and 2.7B: no list of layers, an empty intermediate_size."""
    config = {
        "architectures": ["GPTNeoForCausalLM"], "model_type": "gpt_neo", "activation_function": "gelu_new",
        "attention_dropout": 0, "attention_types": [[["global", "local"], layers // 2]], "bos_token_id": 50256,
        "embed_dropout": 0, "eos_token_id": 50256, "gradient_checkpointing": False, "hidden_size": hidden,
        "initializer_range": 0.02, "intermediate_size": None, "layer_norm_epsilon": 1e-05,
        "max_position_embeddings": 2048, "num_heads": heads, "num_layers": layers, "resid_dropout": 0,
        "summary_type": "cls_index", "use_cache": True, "vocab_size": 50257, "window_size": 256,
    }  # fmt: skip
    with torch.device("meta"):
        theirs = GPTNeoForCausalLM(HFConfig(**config)).num_parameters()
    ours = ModelConfig(gpt_neo=config_from_hf(config, Path("hf"))).build(device="meta").num_parameters()
    assert ours == theirs
    assert round(ours / 1e6) == millions


def test_gpt_2s_two_files_are_a_tokenizer_too(byte_level: TextTokenizer, tmp_path: Path) -> None:
    foreign(tmp_path / "hf", byte_level)
    content = orjson.loads((tmp_path / "hf" / "tokenizer.json").read_bytes())
    (tmp_path / "hf" / "tokenizer.json").unlink()
    vocab = content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
    (tmp_path / "hf" / "vocab.json").write_bytes(orjson.dumps(vocab))
    merges = "\n".join(" ".join(pair) for pair in content["model"]["merges"])
    (tmp_path / "hf" / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    import_checkpoint(tmp_path / "hf", tmp_path / "run")
    _, tokenizer = load_model_for_inference(str(tmp_path / "run"))
    for text in make_documents(20, 5):
        assert tokenizer.encode(text) == byte_level.encode(text)
    assert tokenizer.eos_id == byte_level.eos_id


def test_training_starts_from_an_import_and_its_run_is_exported(byte_level: TextTokenizer, tmp_path: Path) -> None:
    """import_hf.py, training with run.init_from, export_hf.py; no path of this machine gets into the folder."""
    foreign(tmp_path / "hf", byte_level)
    done = tool("import_hf.py", "--hf", tmp_path / "hf", "--out", tmp_path / "imported")
    assert done.returncode == 0, done.stderr
    assert "run.init_from" in done.stdout
    network = yaml.safe_load((tmp_path / "imported" / "config.yaml").read_text())["model"]
    config = write_config(tmp_path, model=network, train__steps=2, train__eval_every=2)
    for number, lang in enumerate(("en", "zh")):
        for name in (lang, f"{lang}.heldout"):
            write_tokens(tmp_path / name, lang, documents=40, seed=number, tokenizer_hash=byte_level.hash)
    tokenizer = str(tmp_path / "imported" / "tokenizer.model")
    train_here(config, "--run.init_from", str(tmp_path / "imported"), "--data.tokenizer", tokenizer)
    model, _ = load_model_for_inference(str(tmp_path / "imported"))
    assert len(list(generate(model, [1], 3, temperature=0))) == 3
    done = tool("export_hf.py", "--run", tmp_path / "run", "--out", tmp_path / "out", "--dtype", "fp32")
    assert done.returncode == 0, done.stderr
    assert "5 rows of the vocabulary are padding" in done.stdout
    card = (tmp_path / "out" / "README.md").read_text()
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    for expected in (
        "| optimizer steps | 2 |",
        f"| en |  |  | {last['heldout_loss/en']:.3f} |",
        "last 5 rows",
        "Licence",
    ):
        assert expected in card
    for path in (tmp_path / "out").glob("*.*"):
        assert str(tmp_path).encode() not in path.read_bytes(), path
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == [byte_level.vocab_size + row for row in range(5)]
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), GPTNeoForCausalLM)
    # A checkpoint by its own path.
    export_run(tmp_path / "imported" / "checkpoints" / "step_00000000", tmp_path / "old", torch.bfloat16, silent)
    assert "Not known: these weights were imported" in (tmp_path / "old" / "README.md").read_text()


def tool(name: str, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT)


def refusal(attempt: Any) -> str:
    with pytest.raises(MindLLMError) as error:
        attempt()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_exported_is_said_in_one_line(
    pieces: Tokenizer, byte_level: TextTokenizer, tmp_path: Path
) -> None:
    out, run = tmp_path / "out", tmp_path / "run"

    def export() -> None:
        export_run(run, out, torch.float32, silent)

    run.mkdir()
    assert "holds no checkpoint" in refusal(export)
    run.rmdir()
    make_run(run, "mindllm", pieces, TemplateConfig())
    own = (run / "tokenizer.model").read_bytes()
    (run / "tokenizer.model").write_bytes(byte_level.model_path.read_bytes())
    assert "is not the tokenizer of " in refusal(export)
    (run / "tokenizer.model").unlink()
    assert "tokenizer.model: the tokenizer cannot be read" in refusal(export)
    (run / "tokenizer.model").write_bytes(own)
    (run / "chat_template.json").write_text("{")
    assert "damaged chat template" in refusal(export)
    (run / "chat_template.json").unlink()
    out.mkdir()
    (out / "kept").write_text("as it was")
    assert "not empty" in refusal(export)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    (out / "kept").unlink()
    export()
    assert (out / "config.json").exists()
    assert not (out / "chat_template.jinja").exists()


def test_a_full_disk_leaves_nothing(pieces: Tokenizer, tmp_path: Path) -> None:
    make_run(tmp_path / "run", "mindllm", pieces)
    export_run(tmp_path / "run", tmp_path / "hf", torch.float32, silent)
    before = sorted(tmp_path.iterdir())
    limit = 300_000  # bytes of a file: more than a tokenizer, less than the weights
    command = [sys.executable, str(ROOT / "tools" / "export_hf.py"), "--run", str(tmp_path / "run"), "--dtype", "fp32"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, env=environment(), cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"error: {tmp_path}/out: cannot be written: File too large; free some space" in done.stderr
    assert sorted(tmp_path.iterdir()) == before
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, usual[1]))
    try:
        message = refusal(lambda: import_checkpoint(tmp_path / "hf", tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert "cannot be written (rank 0: File too large); free space" in message
    assert sorted(tmp_path.iterdir()) == before


def test_what_cannot_be_imported_is_said_in_one_line(byte_level: TextTokenizer, tmp_path: Path) -> None:
    hf, out = tmp_path / "hf", tmp_path / "out"
    hf.mkdir()

    def attempt() -> None:
        import_checkpoint(hf, out)

    assert "has no config.json" in refusal(attempt)
    foreign(hf, byte_level)
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    assert "gpt_neo and mindllm can be imported" in refusal(attempt)
    (hf / "config.json").write_text(json.dumps(config | {"model_type": "mindllm"}))
    assert "config.json has a value of the wrong type" in refusal(attempt)
    (hf / "config.json").write_text(json.dumps(config))
    tokenizer = (hf / "tokenizer.json").read_bytes()
    (hf / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refusal(attempt)
    (hf / "tokenizer.json").write_text("{}")
    assert "hf/tokenizer.json: is no tokenizer.json" in refusal(attempt)
    larger = orjson.loads(tokenizer)
    larger["added_tokens"] += [
        larger["added_tokens"][0] | {"id": byte_level.vocab_size + number, "content": f"<{number}>"}
        for number in range(9)
    ]
    (hf / "tokenizer.json").write_bytes(orjson.dumps(larger))
    assert "do not belong together" in refusal(attempt)
    (hf / "tokenizer.json").write_bytes(tokenizer)
    out.mkdir()
    (out / "kept").write_text("")
    assert "not empty" in refusal(attempt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "out"]


def test_an_exported_folder_whose_parts_do_not_belong_together_is_refused(
    pieces: Tokenizer, byte_level: TextTokenizer, tmp_path: Path
) -> None:
    make_run(tmp_path / "run", "mindllm", pieces, TemplateConfig())
    export_run(tmp_path / "run", tmp_path / "hf", torch.float32, silent)
    import_checkpoint(tmp_path / "hf", tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    own = tmp_path / "hf" / "mindllm"
    tokenizer, template = (own / "tokenizer.model").read_bytes(), (own / "chat_template.json").read_bytes()

    def attempt() -> None:
        import_checkpoint(tmp_path / "hf", tmp_path / "out")

    (own / "tokenizer.model").write_bytes(byte_level.model_path.read_bytes())
    assert "mindllm/tokenizer.model: is not the tokenizer of" in refusal(attempt)
    (own / "tokenizer.model").unlink()
    (own / "tokenizer.model").mkdir()
    assert "mindllm/tokenizer.model: " in refusal(attempt)
    (own / "tokenizer.model").rmdir()
    (own / "tokenizer.model").write_bytes(tokenizer)
    (own / "chat_template.json").write_text("{}")
    assert "mindllm/chat_template.json: damaged chat template" in refusal(attempt)
    (own / "chat_template.json").write_bytes(template)
    config = (tmp_path / "hf" / "config.json").read_text()
    (tmp_path / "hf" / "config.json").write_text(config.replace('"hidden_size": 64', '"hidden_size": 1e400'))
    assert "config.json has a value of the wrong type" in refusal(attempt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "run"]


def test_weights_that_are_no_numbers_are_not_exported(pieces: Tokenizer, tmp_path: Path) -> None:
    model = make_run(tmp_path / "run", "mindllm", pieces)
    with torch.no_grad():
        model.embedding[5, 3] = torch.nan
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    save_weights(model, make_config("mindllm", pieces.vocab_size), pieces.hash, tmp_path / "run" / "checkpoints")
    message = refusal(lambda: export_run(tmp_path / "run", tmp_path / "out", torch.float32, silent))
    assert "embedding holds numbers that are NaN or infinite" in message
    assert not (tmp_path / "out").exists()


def test_a_mindllm_with_other_tensors_is_refused(pieces: Tokenizer, tmp_path: Path) -> None:
    make_run(tmp_path / "run", "mindllm", pieces)
    export_run(tmp_path / "run", tmp_path / "hf", torch.float32, silent)
    weights = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(weights)
    name = "model.layers.1.qkv.weight"
    for changed, message in (
        ({key: tensor for key, tensor in tensors.items() if key != name}, f"lacks the tensor {name}"),
        (tensors | {"model.other": torch.ones(1)}, "besides what the network has the tensor model.other"),
        (tensors | {name: torch.ones(2, 2)}, r"is \(2, 2\), the network needs \(192, 64\)"),
        (tensors | {"lm_head.weight": torch.ones(2, 2)}, r"lm_head.weight of its own"),
    ):
        weights.unlink()
        write_tensors(tmp_path / "hf", changed, torch.float32, silent)
        with pytest.raises(CheckpointError, match=message):
            import_checkpoint(tmp_path / "hf", tmp_path / "out")


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "unigram"},
        {"byte_fallback": False},
        {"add_dummy_prefix": True},
        {"remove_extra_whitespaces": True},
        {"normalization_rule_name": "nfkc"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_sentencepiece_model_that_cannot_be_followed_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    usual = {
        "model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False, "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
    }  # fmt: skip
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(make_documents(100, 1)),
        model_prefix=str(tmp_path / "other"),
        vocab_size=600,
        minloglevel=2,
        **usual | settings,
    )
    with pytest.raises(DataError, match=r"other\.model: cannot be written as tokenizer\.json"):
        tokenizer_json(Tokenizer(tmp_path / "other.model"), for_chats=False)


def test_a_chat_refuses_an_unknown_role(pieces: Tokenizer, tmp_path: Path) -> None:
    make_run(tmp_path / "run", "mindllm", pieces, TemplateConfig())
    export_run(tmp_path / "run", tmp_path / "hf", torch.float32, silent)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf", trust_remote_code=True)
    with pytest.raises(Exception, match="of the system, the user or the assistant"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])
    # In plain text a symbol is read as such, unless it is split.
    user = pieces.special_id("<|user|>")
    assert tokenizer("<|user|>", add_special_tokens=False)["input_ids"] == [user]
    split = tokenizer("<|user|>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert split == pieces.encode("<|user|>")


def test_a_longer_sequence_than_the_network_takes_is_refused_in_transformers(pieces: Tokenizer, tmp_path: Path) -> None:
    make_run(tmp_path / "run", "mindllm", pieces)
    export_run(tmp_path / "run", tmp_path / "hf", torch.float32, silent)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=True)
    with pytest.raises(ValueError, match="401 tokens, and the network takes 400"):
        model(torch.zeros(1, 401, dtype=torch.long))
    assert model(torch.zeros(1, 400, dtype=torch.long)).logits.shape == (1, 400, pieces.vocab_size)
