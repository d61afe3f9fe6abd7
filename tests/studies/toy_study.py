"""A study of seconds, for tests of what all studies share: learning rates of a network of a few thousand parameters.

`python -m tests.studies.toy_study --config FILE` is to it what tools/study.py is to the real ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import yaml

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.distributed.launcher import end_with_launcher
from mindllm_engine.studies.claims import Claim, judge_below
from mindllm_engine.studies.findings import Findings
from mindllm_engine.studies.results import Results, refuse_mixed_text
from mindllm_engine.studies.seeds import paired_estimate
from mindllm_engine.studies.study import StudyConfig, run_study
from mindllm_engine.studies.trials import Trial, named


@dataclass
class Rates:
    """Trials at some learning rates, and a branch from the first of them."""

    rates: list[float] = field(default_factory=lambda: [1e-3, 1e-2])
    """Learning rates."""
    branch_at: int | None = None
    """Step of the first rate's first seed at which a branch leaves it."""
    widths: list[int] = field(default_factory=lambda: [16])
    """Hidden sizes."""

    def trials(self, base: Mapping[str, Any], seeds: list[int], finished: Results | None) -> list[Trial]:
        """All rates, widths and seeds."""
        found = [
            Trial(
                named(width=width, lr=rate, seed=seed),
                {"optim.lr": rate, "run.seed": seed, "model.gpt_neo.hidden_size": width},
                {"rate": rate, "seed": seed, "width": width},
            )
            for width in self.widths
            for rate in self.rates
            for seed in seeds
        ]
        if self.branch_at is not None:
            changes = {**found[0].changes, "optim.weight_decay": 0.0, "train.steps": base["train"]["steps"] + 2}
            found.append(Trial("branch", changes, {}, continues=(found[0].name, self.branch_at)))
        return found

    def analyse(self, results: Results, seeds: list[int]) -> Findings:
        """Whether the second rate is better than the first."""
        refuse_mixed_text(results, "rates")
        first, second = (results.by_seed(lambda r: r.loss, rate=rate) for rate in self.rates[:2])
        estimate = paired_estimate(second, first)
        claim = Claim("the second rate is better", "none", "", estimate.text(), *judge_below(estimate, 0))
        return Findings("Rates", [claim], numbers={"difference": estimate.as_json()})


@dataclass
class ToyConfig(StudyConfig):
    """The toy study."""

    rates: Rates | None = None
    """The only experiment."""


def write_text(folder: Path, documents: int = 400, seed: int = 0) -> None:
    """Two sources of words drawn at random, as JSON lines."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, words in (("en_one", ["red", "green", "blue", "grey"]), ("zh_two", ["山", "水", "火", "土"])):
        texts = (" ".join(random.choice(words, 40)) for _ in range(documents))
        (folder / f"{name}.jsonl").write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts))


def write_base(folder: Path, steps: int = 6, **train: Any) -> Path:
    """The runs' config, and the text it is of."""
    write_text(folder / "text")
    base = {
        "run": {"dir": "unused"},
        "corpus": {
            "dir": str(folder / "data"),
            "tokenizer_vocab_size": 300,
            "tokenizer_train_bytes": 20000,
            "holdout": 0.1,
            "sources": {
                "en_one": {"path": str(folder / "text" / "en_one.jsonl"), "lang": "en", "category": "one"},
                "zh_two": {"path": str(folder / "text" / "zh_two.jsonl"), "lang": "zh", "category": "two"},
            },
        },
        "model": {
            "gpt_neo": {
                "vocab_size": 300,
                "hidden_size": 16,
                "ffn_size": 32,
                "n_layers": 1,
                "n_heads": 2,
                "max_seq_len": 32,
                "window_size": 16,
            }
        },
        "data": {"seq_len": 32, "blocks": [{"tokens": 32 * 4 * 400}]},
        "optim": {"schedule": {"kind": "constant"}},
        "train": {
            "steps": steps,
            "global_batch_size": 4,
            "micro_batch_size": 2,
            "precision": "fp32",
            "eval_tokens": 256,
            "tensorboard": False,
            "keep_checkpoints": 0,
        }
        | train,
    }
    path = folder / "base.yaml"
    path.write_text(yaml.safe_dump(base, sort_keys=False, allow_unicode=True))
    return path


def write_study(folder: Path, base: Path, seeds: tuple[int, ...] = (1, 2), workers: int = 2, **rates: Any) -> Path:
    """The study's config."""
    study = {"dir": str(folder / "study"), "base": [str(base)], "seeds": list(seeds), "workers": workers}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"study": study, "rates": rates or {"rates": [1e-3, 1e-2]}}))
    return path


def main() -> None:
    """As tools/study.py."""
    end_with_launcher()
    run_study(parse_arguments(ToyConfig, "A toy."))


if __name__ == "__main__":
    run_tool(main)
