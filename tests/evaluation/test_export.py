"""Exported runs in Transformers: the same ids, texts, chats, logits and continuations as in the engine.

The same checks run under Transformers 4.57 where MINDLLM_TRANSFORMERS_457=1 (a virtual environment is made for it).
"""

import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mindllm_engine.corpus.chat_template import TemplateConfig
from mindllm_engine.corpus.open_tokenizer import TextTokenizer
from mindllm_engine.errors import DataError
from mindllm_engine.evaluation.export.export_run import export_run
from tests.evaluation import exported_checks
from tests.evaluation.exported_runs import make_run, train_byte_level, train_sentencepiece, write_expected

# In words, with symbols of neither kind at the ends of parts, so that parts could join with messages.
IN_WORDS = TemplateConfig(
    system="{content}\n\n", user="### 问题 <|phone|>:{content}\n", assistant="### <unk> Answer: {content} </s>"
)


@dataclass
class Case:
    """A run to export."""

    network: str
    tokenizer: str
    template: TemplateConfig | None = None
    padding_rows: int = 0
    texts: int = 5000


CASES = {
    "gpt_neo": Case("gpt_neo", "byte_level"),
    "gpt_neo-chat": Case("gpt_neo", "byte_level", TemplateConfig(), padding_rows=7, texts=1000),
    "gpt_neo-words": Case("gpt_neo", "byte_level", IN_WORDS, texts=1000),
    "mindllm": Case("mindllm", "sentencepiece", padding_rows=7),
    "mindllm-chat": Case("mindllm", "sentencepiece", TemplateConfig()),
    "mindllm-words": Case("mindllm", "sentencepiece", IN_WORDS, texts=1000),
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextTokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {"byte_level": train_byte_level(folder), "sentencepiece": train_sentencepiece(folder)}


def export(folder: Path, case: Case, tokenizers: dict[str, TextTokenizer]) -> tuple[Path, Path]:
    """The exported folder, and what is expected of it."""
    tokenizer = tokenizers[case.tokenizer]
    model = make_run(folder / "run", case.network, tokenizer, case.template, case.padding_rows)
    shown: list[int] = []
    exported = export_run(folder / "run", folder / "exported", torch.float32, shown.append)
    assert shown[-1] == 4 * exported.parameters
    assert exported.padding_rows == case.padding_rows
    write_expected(folder / "expected", model, folder / "run", case.template, case.texts)
    return folder / "exported", folder / "expected"


@pytest.mark.parametrize("name", CASES)
def test_transformers_gives_what_the_engine_gives(
    name: str, tokenizers: dict[str, TextTokenizer], tmp_path: Path
) -> None:
    exported, expected = export(tmp_path, CASES[name], tokenizers)
    exported_checks.check_all(exported, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "exported", "run"]


@pytest.fixture(scope="module")
def python_457(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with Transformers 4.57 of its own, and all else as here."""
    if os.environ.get("MINDLLM_TRANSFORMERS_457") != "1":
        pytest.skip("set MINDLLM_TRANSFORMERS_457=1 to check Transformers 4.57 too (installs it from the index)")
    folder = tmp_path_factory.mktemp("transformers_457")
    venv.create(folder, with_pip=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "zz_all_else.pth").write_text(sysconfig.get_path("purelib") + "\n")
    wanted = ["transformers>=4.57,<4.58", "tokenizers>=0.22,<0.23", "huggingface_hub>=0.34,<1.0"]
    install = ["install", "--quiet", "--no-deps", "--ignore-installed", *wanted]
    subprocess.run([folder / "bin" / "python", "-m", "pip", *install], check=True)
    return folder / "bin" / "python"


@pytest.mark.parametrize("name", CASES)
def test_transformers_457_gives_what_the_engine_gives(
    name: str, tokenizers: dict[str, TextTokenizer], tmp_path: Path, python_457: Path
) -> None:
    exported, expected = export(tmp_path, CASES[name], tokenizers)
    version = subprocess.check_output(
        [python_457, "-c", "import transformers; print(transformers.__version__)"], text=True
    )
    assert version.startswith("4.57.")
    done = subprocess.run(
        [python_457, exported_checks.__file__, exported, expected], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.endswith("all as expected\n")
    assert sys.version_info >= (3, 11)


def test_a_network_that_transformers_files_cannot_hold_is_refused(
    tmp_path: Path, tokenizers: dict[str, TextTokenizer]
) -> None:
    make_run(tmp_path / "run", "minicpm", tokenizers["sentencepiece"])
    with pytest.raises(DataError, match="holds a MiniCPM network, and only MindLLM and") as error:
        export_run(tmp_path / "run", tmp_path / "out", torch.float32, lambda written: None)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
