"""From texts to what is dropped: signers, the search, and the step in a datatrove pipeline."""

import random
from pathlib import Path
from typing import Literal

import dill
import pytest
from datatrove.data import Document

from mindllm_engine.corpus.near_duplicates import NearDuplicatesConfig, find_duplicates, make_signer
from mindllm_engine.corpus.steps.drop_duplicates import DropDuplicates
from mindllm_engine.errors import DataError
from tests.corpus.test_signatures import edited, random_text

MIB = 1 << 20


def documents(files: list[list[str]]) -> list[Document]:
    return [
        Document(text, f"s/{file}:{ordinal}", metadata={"file": file, "ordinal": ordinal})
        for file, texts in enumerate(files)
        for ordinal, text in enumerate(texts)
    ]


def searched(folder: Path, files: list[list[str]], lang: str, method: Literal["simhash", "minhash", "none"]) -> Path:
    config = NearDuplicatesConfig(method=method)
    signer = make_signer(config)
    paths = [folder / f"{number}.signatures" for number in range(len(files))]
    for path, texts in zip(paths, files, strict=True):
        path.write_bytes(b"".join(signer.sign(text, lang) for text in texts))
    find_duplicates(config, paths, folder / "found", MIB)
    return folder / "found"


@pytest.mark.parametrize("lang", ["zh", "en"])
@pytest.mark.parametrize("method", ["simhash", "minhash"])
def test_copies_are_dropped_and_the_first_stays(
    method: Literal["simhash", "minhash"], lang: str, tmp_path: Path
) -> None:
    chooser = random.Random(1)
    texts = [random_text(chooser, lang, 600) for _ in range(6)]
    near = edited(chooser, texts[3], lang, 1)
    files = [
        [texts[0], texts[1], texts[0]],
        [],
        [texts[2], texts[1], texts[3], near, texts[4] + "。"],
        [texts[4], "ok"],
    ]
    step = dill.loads(dill.dumps(DropDuplicates(searched(tmp_path, files, lang, method))))
    kept = [document.id for document in step.run(iter(documents(files)))]
    assert kept == ["s/0:0", "s/0:1", "s/2:0", "s/2:2", "s/2:4", "s/3:1"]
    entry = step.ledger.step("near-duplicates")
    assert {reason: found.documents for reason, found in entry.dropped.items()} == {"duplicate": 2, "near-duplicate": 2}
    details = {ident: detail for found in entry.dropped.values() for _, ident, detail, _ in found.examples}
    assert details["s/0:2"] == "of 0:0"
    assert details["s/2:1"] == "of 0:1"
    assert details["s/2:3"].startswith("of 2:2, distance ")
    assert details["s/3:0"] == "of 2:4, distance 0"
    assert dill.loads(dill.dumps(step)).folder == step.folder  # after its use as well


def test_none_keeps_all(tmp_path: Path) -> None:
    files = [["one", "one"], ["one"]]
    step = DropDuplicates(searched(tmp_path, files, "en", "none"))
    assert len(list(step.run(iter(documents(files))))) == 3


def test_a_missing_file_ends_the_task(tmp_path: Path) -> None:
    """Were it a fault of the document, all of them would be dropped."""
    step = DropDuplicates(tmp_path)
    with pytest.raises(DataError, match=r"0\.duplicates: cannot be read"):
        list(step.run(iter(documents([["one"]]))))
