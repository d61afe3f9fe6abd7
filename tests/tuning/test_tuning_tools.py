"""What people see: samples with every token in the colour of its weight, and talking to a tuned run; and the configs
that ship."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from mindllm_engine.command_line import parse_arguments
from mindllm_engine.corpus.chat_template import Message, load_template
from mindllm_engine.data.loader import Loader
from mindllm_engine.data.loss_mask import NEW_SEQUENCE, SUPERVISED
from mindllm_engine.data.plan import BlockConfig, Plan, SourceFacts
from mindllm_engine.data.stream import packed_windows
from mindllm_engine.data.token_file_builder import TokenFileBuilder
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.evaluation.generation import generate
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.weights import load_model_for_inference
from mindllm_engine.tuning.config import TuneConfig
from mindllm_engine.tuning.finance import FinanceConfig
from mindllm_engine.tuning.inspection import look_at_tuning
from mindllm_engine.tuning.law import LawConfig
from mindllm_engine.tuning.rationales import RationaleConfig
from tests.training.tiny_run import ROOT
from tests.tuning.tiny_tuning import base_run, launch, make_tokenizer, sums, tune_here, write_records, write_tuning

SEQ_LEN = 24
# Configs of tools that prepare records, by name.
PREPARATIONS: dict[str, type[FinanceConfig | LawConfig | RationaleConfig]] = {
    "finance": FinanceConfig,
    "finance_news": FinanceConfig,
    "law": LawConfig,
    "rationales": RationaleConfig,
}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    path = write_records(folder / "sums.jsonl", sums(40, 1))
    config = write_tuning(folder, base_run(folder / "base"), {"sums": {"path": str(path)}}, tuning__heldout=0.0)
    tune_here(config, "--train.steps", "2")
    return folder / "run"


def test_shown_is_what_is_trained_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, SEQ_LEN + 2, 60)
    tokens = rng.integers(1, 100, lengths.sum())
    mask = (rng.random(len(tokens)) < 0.5).astype(np.uint8) * SUPERVISED
    mask |= (rng.random(len(tokens)) < 0.05).astype(np.uint8) * NEW_SEQUENCE
    with TokenFileBuilder(
        tmp_path / "a", "uint16", name="a", lang="en", category="x", tokenizer_hash="0", vocab_size=100, masked=True
    ) as builder:
        builder.append_many(tokens, lengths, 1, mask)
    file = TokenFile(tmp_path / "a")
    samples = packed_windows(file, SEQ_LEN).samples
    facts = SourceFacts.of("a", file.manifest, {SEQ_LEN: samples})
    loader = Loader(Plan([facts], [BlockConfig()], SEQ_LEN, 1, samples, "best_fit"), [file], 100, 0, 1)
    starts = np.cumsum(lengths) - lengths
    seen: dict[int, list[tuple[int, bool]]] = {}
    for number in range(samples):
        sample = look_at_tuning(loader, number)
        shown = sum(len(view.ids) for view in sample.sequences)
        assert SEQ_LEN <= shown + sample.padding <= SEQ_LEN + 1
        for view in sample.sequences:
            assert not view.learnt[0]
            seen.setdefault(view.document, []).extend(zip(view.ids.tolist(), view.learnt.tolist(), strict=True))
    assert sorted(seen) == list(range(60))
    for document, shown_tokens in seen.items():
        where = slice(starts[document], starts[document] + lengths[document])
        learnt = (mask[where] == SUPERVISED) & (np.arange(lengths[document]) > 0)
        wanted = list(zip(tokens[where].tolist(), learnt.tolist(), strict=True))
        # A last token that lies beyond the inputs and is not learnt is no part of the sample.
        assert shown_tokens in (wanted, wanted[:-1])
        assert len(shown_tokens) == len(wanted) or not wanted[-1][1]


def test_the_page_shows_answers_as_learnt_and_questions_as_context(tuned: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = launch(
        "inspect_tuning_data.py", "--config", str(tuned / "tuning.yaml"), "--samples", "0,1,2", "--html", str(page)
    )
    assert done.returncode == 0, done.stderr
    spans = re.findall(r'<span style="([^"]*)">([^<]*)</span>', page.read_text())
    learnt = {text for style, text in spans if "font-weight: bold" in style and "color" in style}
    context = {text for style, text in spans if "color" in style and "font-weight" not in style}
    assert any(text.startswith("The sum of") for text in learnt)
    assert "&lt;|end|&gt;" in " ".join(learnt)
    assert "&lt;/s&gt;" in " ".join(learnt)
    assert any("Add" in text for text in context)
    assert not any("Add" in text for text in learnt)
    assert not any("The sum of" in text for text in context)


def test_a_token_file_alone_is_shown(tuned: Path) -> None:
    prefix = str(next((tuned.parent / "tokens").glob("sums-*")) / "train")
    options = ["--prefix", prefix, "--seq_len", "64", "--tokenizer", str(tuned / "tokenizer.model")]
    done = launch("inspect_tuning_data.py", *options, "--samples", "1")
    assert done.returncode == 0, done.stderr
    assert "The sum of" in done.stdout
    refused = launch("inspect_tuning_data.py", *options, "--samples", "9999")
    assert refused.returncode == 2
    assert "there is no sample 9999" in refused.stderr


def test_a_chat_is_the_networks_own_greedy_answer(tuned: Path) -> None:
    model, tokenizer = load_model_for_inference(str(tuned))
    template = load_template(tuned, tokenizer)

    def answer(chat: list[Message]) -> str:
        ids = []
        for token in generate(model, template.prompt(chat), 12, temperature=0, vocab_size=tokenizer.vocab_size):
            if token in template.stop_ids:
                break
            ids.append(token)
        return tokenizer.decode(ids)

    asked = ["Add the numbers. 3 and 4", "1 and 2"]
    first = answer([Message("system", "Be brief."), Message("user", asked[0])])
    options = ["--run", str(tuned), "--temperature", "0", "--max_new_tokens", "12", "--system", "Be brief."]
    done = launch("chat.py", *options, "--prompt", asked[0])
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{first}\n"
    chat = [Message("system", "Be brief."), Message("user", asked[0]), Message("assistant", first)]
    second = answer([*chat, Message("user", asked[1])])
    talked = launch("chat.py", *options, stdin=f"{asked[0]}\n{asked[1]}\n\n{asked[0]}\n{'9 ' * 80}\n{asked[0]}")
    assert talked.returncode == 0, talked.stderr
    # Anew after the empty line, and after a chat that is too long for the network.
    assert talked.stdout == f"{first}\n{second}\n{first}\n{first}\n"
    assert talked.stderr.count("we begin anew") == 1
    # So it does after words that are no Unicode.
    talked = launch("chat.py", *options, stdin=f"{asked[0]}\n\udcff\n{asked[0]}")
    assert talked.returncode == 0, talked.stderr
    assert talked.stdout == f"{first}\n{first}\n"
    assert "lone surrogate" in talked.stderr


def test_a_tokenizer_that_does_not_belong_to_the_checkpoint_is_refused(tuned: Path, tmp_path: Path) -> None:
    shutil.copytree(tuned, tmp_path / "run")
    make_tokenizer(tmp_path / "run" / "tokenizer.model", special_tokens=False)
    for tool in ("chat.py", "generate.py"):
        done = launch(tool, "--run", str(tmp_path / "run"), "--prompt", "x")
        assert done.returncode == 2, tool
        assert "is not the tokenizer of" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_run_that_was_not_tuned_has_nothing_to_say(tuned: Path) -> None:
    done = launch("chat.py", "--run", str(tuned.parent / "base" / "run"), "--prompt", "x")
    assert done.returncode == 2
    assert "no chat template" in done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "tuning").glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_that_ship_are_possible(path: Path) -> None:
    if path.stem in PREPARATIONS:
        parse_arguments(PREPARATIONS[path.stem], "", ["--config", str(path)]).validate()
        return
    if "tuning" not in yaml.safe_load(path.read_text()):
        parse_arguments(RunConfig, "", ["--config", str(path)]).validate(world_size=1)
        return
    config = parse_arguments(TuneConfig, "", ["--config", str(path)])
    config.validate_tuning()
    assert config.run.init_from is not None


def test_the_small_tuning_starts_from_the_small_base() -> None:
    base, tuning = (
        yaml.safe_load((ROOT / f"configs/tuning/{name}_small.yaml").read_text()) for name in ("base", "alpaca")
    )
    assert tuning["run"]["init_from"] == base["run"]["dir"]
    assert tuning["data"]["seq_len"] <= base["model"]["mindllm"]["max_seq_len"]
    assert base["corpus"]["tokenizer_special_tokens"]
