"""What each source teaches (MindLLM, section 2.4.2, Figures 3 and 4): one small network a source, all of them measured
on all sources, and the mixture that the paper's advice suggests.

`runs.py` reads the networks, `measures.py` has the arithmetic, `pictures.py` the plots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from mindllm_engine.errors import ConfigError
from mindllm_engine.studies.claims import Claim, judge_above, judge_below, not_decidable
from mindllm_engine.studies.findings import Findings, Table
from mindllm_engine.studies.results import Results, refuse_mixed_text
from mindllm_engine.studies.seeds import Estimate, mean_estimate
from mindllm_engine.studies.sources.measures import (
    RETAINED,
    against_language,
    between_languages,
    factors,
    language_ratios,
    mixture_weights,
    similarity,
)
from mindllm_engine.studies.sources.pictures import source_pictures
from mindllm_engine.studies.sources.runs import Measured, measure
from mindllm_engine.studies.trials import Trial, named

MIXTURE_FILE = "mixture.yaml"
PAIRS_SHOWN = 12
# Whose words the advice is known by: the text of section 2.4.2 was not to be had.
ADVICE = "MindLLM, section 2.4.2 (as its authors' project page sums it up); measured in this project's reading"


@dataclass
class SourcesConfig:
    """One network for each source of the base config, the same in all but what it reads."""

    steps: int
    """Steps of each network."""
    eval_every: int
    """Steps between the points of the learning curves."""
    max_epochs: float = 4.0
    """How often a network may read its source, and the mixture any."""
    languages: dict[str, float] = field(default_factory=lambda: {"zh": 1.0, "en": 1.5})
    """Ratio of the languages in the mixture (MindLLM, Table 1)."""

    def trials(self, base: Mapping[str, Any], seeds: list[int], finished: Results | None) -> list[Trial]:
        """A network for each source and seed, which reads nothing else. Raises ConfigError for fewer than two."""
        del finished
        names = sources_of(base)
        if len(names) < 2:
            raise ConfigError(f"sources: the base config has {len(names)} sources; comparing them takes two at least")
        if self.steps < 2 * self.eval_every or self.eval_every < 1:
            raise ConfigError(
                f"sources.eval_every: {self.eval_every} must be between 1 and half of sources.steps = {self.steps}"
            )
        return [
            Trial(
                named(source=f"_{name}", seed=seed),
                {
                    "run.seed": seed,
                    "data.blocks": [{"order": "shuffled", "weights": {name: 1.0}, "max_epochs": self.max_epochs}],
                    "train.steps": self.steps,
                    "train.eval_every": self.eval_every,
                },
                {"source": name, "seed": seed},
            )
            for name in names
            for seed in seeds
        ]

    def analyse(self, results: Results, seeds: list[int]) -> Findings:
        """The matrix, the likeness of sources, and the mixture.

        Raises:
            DataError: fewer than two sources whose networks of all seeds have finished; other text among the runs.
            ConfigError: a language without a ratio.
        """
        refuse_mixed_text(results, "what each source teaches", same_sources=False)
        measured = measure(results, seeds)
        places, names = measured.places, measured.names
        chosen = factors(places, measured.teaches.mean(0), measured.taught.mean(0), measured.late.mean(0))
        weights = mixture_weights(places, chosen)
        ratios = language_ratios(places, self.languages)
        blocks = [{"order": "shuffled", "languages": ratios, "weights": weights, "max_epochs": self.max_epochs}]
        alike = np.array([similarity(matrix) for matrix in measured.transfer])
        numbers = {
            "sources": names,
            "seeds": list(seeds),
            "untrained_bits_per_byte": measured.untrained.mean(0),
            "bits_per_byte": measured.trained.mean(0),
            "transfer": measured.transfer.mean(0),
            "similarity": alike.mean(0),
            "curve_tokens": measured.tokens,
            "curves": dict(zip(names, measured.curves.mean(0), strict=True)),
            "factors": dict(zip(names, chosen, strict=True)),
            "mixture": blocks,
        }
        return Findings(
            "What each source teaches",
            _claims(measured),
            [_sources_table(measured, chosen, weights, ratios), _pairs_table(alike, names)],
            source_pictures(measured, alike.mean(0)),
            _plain(numbers),
            files={MIXTURE_FILE: mixture_yaml(blocks)},
        )


def sources_of(base: Mapping[str, Any]) -> list[str]:
    """Names of the sources of a run's config, given as a mapping."""
    corpus = base.get("corpus") or {}
    return list(corpus.get("sources") or (base.get("data") or {}).get("sources") or {})


def mixture_yaml(blocks: list[dict[str, Any]]) -> str:
    """The mixture as a config that completes a run's: `tools/pretrain.py --config RUN.yaml --config mixture.yaml`."""
    lines = [
        "# The mixture that tools/study.py has measured, to complete the config of a run on the same sources:",
        "#   tools/pretrain.py --config RUN.yaml --config mixture.yaml",
        "# `weights` are shares within each language.",
    ]
    return "\n".join(lines) + "\n" + yaml.safe_dump({"data": {"blocks": blocks}}, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def _claims(measured: Measured) -> list[Claim]:
    return [
        _own_text_claim(measured),
        _seeds_claim(
            "Sources of one language teach each other more than sources of different languages do",
            "MindLLM, section 2.4.2, Figure 4 (this project's reading)",
            [between_languages(matrix, measured.places) for matrix in measured.transfer],
            "above",
            "the sources are not of two languages with two sources in one of them",
        ),
        _category_claim(
            "Web text deserves a high proportion: it teaches the others of its language more than those do",
            measured,
            measured.teaches,
            "webtext",
            "above",
        ),
        _category_claim(
            "Mathematics may be sampled down: it is learnt sooner than other sources",
            measured,
            measured.late,
            "math",
            "below",
        ),
        _category_claim(
            "Code should be sampled up: other sources teach it less than they are taught",
            measured,
            measured.taught,
            "code",
            "below",
        ),
        not_decidable(
            "Books and dialogues should be retained, for their long context",
            ADVICE,
            "",
            f"networks that see {measured.seq_len} tokens at a time learn nothing of long context; the mixture keeps "
            "their share by size",
        ),
    ]


def _own_text_claim(measured: Measured) -> Claim:
    margins = np.array([_margins(matrix) for matrix in measured.trained])
    estimate = mean_estimate(margins.mean(axis=1).tolist())
    best = int((margins.mean(axis=0) > 0).sum())
    here = f"{estimate.text(3)} bits per byte better on average; best on {best} of {len(measured.places)} sources"
    return Claim(
        "A source's own network predicts it better than the best network of another source does",
        "MindLLM, section 2.4.2, Figure 4 (this project's reading)",
        "",
        here,
        *judge_above(estimate, 0.0),
    )


def _margins(trained: NDArray[np.float64]) -> NDArray[np.float64]:
    """(texts,) bits per byte by which the best network of another source falls short of the text's own."""
    others = np.where(np.eye(len(trained), dtype=bool), np.inf, trained)
    return np.asarray(others.min(axis=0) - np.diag(trained))


def _category_claim(statement: str, measured: Measured, values: NDArray[np.float64], category: str, side: str) -> Claim:
    differences = [against_language(of_seed, measured.places, category) for of_seed in values]
    lacking = f"no language has a finished source of the category {category} beside others"
    return _seeds_claim(statement, ADVICE, differences, side, lacking)


def _seeds_claim(statement: str, source: str, values: Sequence[float | None], side: str, lacking: str) -> Claim:
    """A claim that a number, one a seed, lies above or below 0."""
    present = [value for value in values if value is not None]
    if not present:
        return not_decidable(statement, source, "", lacking)
    estimate = mean_estimate(present)
    judge = judge_above if side == "above" else judge_below
    return Claim(statement, source, "", f"difference {estimate.text(3)}", *judge(estimate, 0.0))


def _sources_table(
    measured: Measured, chosen: Sequence[float], weights: Mapping[str, float], ratios: Mapping[str, float]
) -> Table:
    whole = sum(ratios.values())
    rows = []
    for number, place in enumerate(measured.places):
        own = mean_estimate(measured.trained[:, number, number].tolist())
        columns = [values[:, number].mean() for values in (measured.late, measured.teaches, measured.taught)]
        rows.append(
            [
                place.name,
                f"{place.tokens:,}",
                f"{measured.untrained[:, number].mean():.3f}",
                own.text(3),
                *(f"{value:.3f}" for value in columns),
                "kept" if place.category in RETAINED else f"{chosen[number]:.2f}",
                f"{100 * weights[place.name] * ratios[place.language] / whole:.1f} %",
            ]
        )
    header = ["source", "tokens", "untrained", "own network", "late", "teaches", "taught", "factor", "share"]
    note = (
        "Bits per byte of held-out text before training and under the source's own network. late: share of the bits "
        "saved that the second half of training saves. teaches, taught: mean transfer to and from the other sources of "
        "its language; 1 is as good as the text's own network, 0 no better than an untrained one. factor: how much "
        "more often than by its size the mixture reads it within its language; share: of the whole mixture."
    )
    return Table("Sources and the mixture", header, rows, note)


def _pairs_table(alike: NDArray[np.float64], names: Sequence[str]) -> Table:
    pairs = [(row, column) for row in range(len(names)) for column in range(row)]
    estimates: list[tuple[Estimate, str]] = [
        (mean_estimate(alike[:, row, column].tolist()), f"{names[column]} and {names[row]}") for row, column in pairs
    ]
    estimates.sort(key=lambda entry: -entry[0].value)
    shown = estimates if len(estimates) <= 2 * PAIRS_SHOWN else estimates[:PAIRS_SHOWN] + estimates[-PAIRS_SHOWN:]
    note = (
        "Mean transfer in both directions, 0 where a network is worse than an untrained one; the most and the least "
        "alike. Intervals are over seeds: that the held-out text is a sample they do not contain."
    )
    return Table("Likeness of sources", ["pair", "similarity"], [[name, entry.text(3)] for entry, name in shown], note)
