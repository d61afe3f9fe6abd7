"""Token files with planted laws for the studies' tests, and the config of a run on them that takes a second or two."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from mindllm_engine.data.token_file_builder import TokenFileBuilder

VOCAB = 16
SEQ_LEN = 32
TOKENIZER = "a" * 16


def random_chain(seed: int) -> NDArray[np.float64]:
    """The transitions (VOCAB, VOCAB) of a Markov chain whose rows are far from uniform."""
    return np.random.default_rng(seed).dirichlet(np.full(VOCAB, 0.1), size=VOCAB) * 0.98 + 0.02 / VOCAB


def chain_documents(chain: NDArray[np.float64], documents: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Walks of SEQ_LEN + 1 states through a chain, from a uniform first one."""
    rng = np.random.default_rng(seed)
    bounds = chain.cumsum(axis=1)
    for _ in range(documents):
        walk = [int(rng.integers(VOCAB))]
        for draw in rng.random(SEQ_LEN):
            walk.append(min(int(np.searchsorted(bounds[walk[-1]], draw)), VOCAB - 1))
        yield np.array(walk)


def write_source(
    prefix: Path, documents: Iterator[NDArray[np.int64]], lang: str, category: str, tokenizer: str = TOKENIZER
) -> None:
    """A token file whose tokens count as a byte of text each, so that bits per byte are bits a token."""
    found = list(documents)
    lengths = np.array([len(document) for document in found])
    name = prefix.name.split(".")[0]
    with TokenFileBuilder(
        prefix, "uint16", name=name, lang=lang, category=category, tokenizer_hash=tokenizer, vocab_size=VOCAB
    ) as builder:
        builder.append_many(np.concatenate(found), lengths, text_bytes=int(lengths.sum()))


def write_chain_source(
    folder: Path, name: str, chain: NDArray[np.float64], seed: int, lang: str = "en", category: str = "web"
) -> None:
    """Training and held-out documents of a chain."""
    write_source(folder / name, chain_documents(chain, 600, seed), lang, category)
    write_source(folder / f"{name}.heldout", chain_documents(chain, 60, seed + 1000), lang, category)


def write_base(folder: Path, names: list[str], **train: Any) -> Path:
    """The config of a run on sources of `folder`: a GPT-Neo of one global and one local layer, 32 wide."""
    config: dict[str, Any] = {
        "run": {"dir": "unused"},
        "model": {
            "gpt_neo": {
                "vocab_size": VOCAB, "hidden_size": 32, "ffn_size": 64, "n_layers": 2, "n_heads": 2,
                "max_seq_len": SEQ_LEN, "window_size": 16,
            }
        },
        "data": {
            "seq_len": SEQ_LEN,
            "sources": {name: str(folder / name) for name in names},
            "heldout": {name: str(folder / f"{name}.heldout") for name in names},
        },
        "optim": {"lr": 1e-2, "schedule": {"kind": "linear", "warmup_steps": 5}},
        "train": {
            "steps": 60, "global_batch_size": 16, "micro_batch_size": 16, "precision": "fp32", "log_every": 1,
            "checkpoint_every": 0, "tensorboard": False, **train,
        },
    }  # fmt: skip
    path = folder / "base.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def study_mapping(folder: Path, base: Path, seeds: list[int], **experiment: Mapping[str, Any]) -> dict[str, Any]:
    """A study's config as a mapping, which two workers train, of one thread each."""
    section = {"dir": str(folder / "study"), "base": [str(base)], "seeds": seeds, "workers": 2}
    return {"study": section, **experiment}
