"""Two languages from scratch against one first and a transfer to the other, at equal tokens (MindLLM, arXiv 2310.15777,
sections 4.2 and 4.4).

A transfer is a run of its own that starts from the last weights of the first language's run, as the second stage of
MindLLM-1.3B does: with a new optimizer, warm-up and decay. All runs share one tokenizer, made of both languages, where
the paper extends its vocabulary for the second one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.studies.claims import Claim, judge_above, judge_below
from mindllm_engine.studies.findings import Findings, Picture, Table
from mindllm_engine.studies.languages import language_bits
from mindllm_engine.studies.paired import difference, judged, reasons
from mindllm_engine.studies.pictures import picture
from mindllm_engine.studies.results import Result, Results, refuse_mixed_text
from mindllm_engine.studies.seeds import mean_estimate
from mindllm_engine.studies.trials import Trial

SECTIONS = "MindLLM (arXiv 2310.15777), sections 4.2 and 4.4"
UNIT = " bits per byte"
# The second stage begins its sources anew; another order than the first stage's, so that text which both read does not
# come in the same places.
SECOND_STAGE_SEED = 1_000_000


@dataclass
class TransferConfig:
    """Both languages from scratch, and the first language followed by a transfer. The runs' config has one block
    without a budget; its `languages` are replaced."""

    steps: int
    """Of each way in all, its stages together."""
    transfers: dict[str, dict[str, float]]
    """How a transfer is called -> ratio of the languages in its second stage, such as {zh: 1}."""
    first: str = "en"
    """The language that is learnt first."""
    second: str = "zh"
    """The language of the transfer."""
    first_share: float = 0.5
    """Share of the steps that go to the first language, before a transfer."""
    bilingual: dict[str, float] = field(default_factory=lambda: {"en": 1.0, "zh": 1.0})
    """Ratio of the languages from scratch."""

    def trials(self, base: Mapping[str, Any], seeds: list[int], finished: Results | None) -> list[Trial]:
        """For each seed the first language's run, its transfers, and the bilingual one. Raises ConfigError."""
        self._check(base)
        return [trial for seed in seeds for trial in self._of_seed(base, seed)]

    def analyse(self, results: Results, seeds: list[int]) -> Findings:
        """Bits per byte of both ways by language, and what a transfer forgets. Raises DataError."""
        refuse_mixed_text(results, "from scratch against transfer", same_sources=False)
        bilingual = results.with_settings(way="bilingual")
        if not bilingual or not any(results.with_settings(way=name) for name in self.transfers):
            raise DataError(
                "transfer: too few points: one bilingual run and one transfer at least must end well; "
                + reasons(results)
            )
        claims = [claim for name in self.transfers for claim in self._claims(results, name)]
        return Findings(
            "Bilingual from scratch against a transfer",
            claims,
            [self._table(results)],
            [self._picture(results)],
            {"first": self.first, "second": self.second},
        )

    def _check(self, base: Mapping[str, Any]) -> None:
        if self.first == self.second:
            raise ConfigError(f"transfer.second: {self.second} is transfer.first as well; name another language")
        if not 0 < round(self.first_share * self.steps) < self.steps:
            raise ConfigError(
                f"transfer.first_share: {self.first_share} of transfer.steps = {self.steps} leaves a stage no step"
            )
        if not self.transfers or {"bilingual", "first"} & self.transfers.keys():
            raise ConfigError("transfer.transfers: name one at least, and none `bilingual` or `first`")
        for key, ratios in {"bilingual": self.bilingual, **self.transfers}.items():
            if not ratios.get(self.second):
                raise ConfigError(f"transfer {key}: {ratios} gives no share to transfer.second = {self.second}")
        blocks = (base.get("data") or {}).get("blocks") or [{}]
        if len(blocks) > 1 or blocks[0].get("tokens") is not None:
            raise ConfigError("data.blocks: give the runs of a transfer study one block without `tokens`")

    def _of_seed(self, base: Mapping[str, Any], seed: int) -> list[Trial]:
        first_steps = round(self.first_share * self.steps)
        first = self._trial(base, "first", seed, seed, first_steps, {self.first: 1.0}, None)
        transfers = [
            self._trial(base, name, seed, seed + SECOND_STAGE_SEED, self.steps - first_steps, ratios, first.name)
            for name, ratios in self.transfers.items()
        ]
        return [first, *transfers, self._trial(base, "bilingual", seed, seed, self.steps, self.bilingual, None)]

    def _trial(
        self,
        base: Mapping[str, Any],
        way: str,
        seed: int,
        run_seed: int,
        steps: int,
        languages: Mapping[str, float],
        starts_from: str | None,
    ) -> Trial:
        blocks = (base.get("data") or {}).get("blocks") or [{}]
        changes = {
            "run.seed": run_seed,
            "train.steps": steps,
            "data.blocks": [{**blocks[0], "languages": dict(languages)}],
        }
        return Trial(f"{way}_seed{seed}", changes, {"way": way, "seed": seed}, starts_from=starts_from)

    def _claims(self, results: Results, name: str) -> list[Claim]:
        """One transfer against from scratch, over both languages and in each; and what it forgets."""
        claims = []
        for what, value in (
            ("both languages", self._both),
            (self.second, _at_end(self.second)),
            (self.first, _at_end(self.first)),
        ):
            bits = difference(results.by_seed(value, way="bilingual"), results.by_seed(value, way=name))
            claims.append(
                judged(
                    f"Of equal tokens, bilingual from scratch leaves fewer bits per byte of {what} than the transfer "
                    f"`{name}`",
                    SECTIONS,
                    "",
                    ("from scratch less transfer", bits),
                    lambda estimate: judge_below(estimate, 0),
                    results,
                    UNIT,
                )
            )
        before = results.by_seed(_at_start(self.first), way=name)
        after = results.by_seed(_at_end(self.first), way=name)
        forgets = judged(
            f"The transfer `{name}` forgets {self.first}: its bits per byte rise in the second stage",
            SECTIONS,
            "",
            ("after the transfer less before it", difference(after, before)),
            lambda estimate: judge_above(estimate, 0),
            results,
            UNIT,
        )
        return [*claims, forgets]

    def _both(self, result: Result) -> float:
        return fmean(_at_end(language)(result) for language in (self.first, self.second))

    def _table(self, results: Results) -> Table:
        rows = []
        for way in ("first", *self.transfers, "bilingual"):
            runs = results.with_settings(way=way)
            if not runs:
                continue
            values = (_at_end(self.first), _at_end(self.second), self._both)
            means = [mean_estimate([value(run) for run in runs]).text(4) for value in values]
            rows.append([self._label(way), f"{runs[0].tokens + self._tokens_before(results, way):,}", *means])
        return Table(
            "Held-out bits per byte at the end, the mean over a language's sources",
            ["", "tokens in all", self.first, self.second, "both"],
            rows,
            "Each interval is of one way over the seeds; the claims compare ways seed by seed.",
        )

    def _label(self, way: str) -> str:
        if way == "bilingual":
            return f"{self.first} and {self.second} from scratch"
        return f"{self.first} alone" if way == "first" else f"... then transfer `{way}`"

    def _tokens_before(self, results: Results, way: str) -> int:
        """Tokens of the stage that a way starts from."""
        first = results.with_settings(way="first")
        return first[0].tokens if way in self.transfers and first else 0

    def _picture(self, results: Results) -> Picture:
        def draw(*axes: Any) -> None:
            for place, language in zip(axes, (self.first, self.second), strict=True):
                for way in ("first", *self.transfers, "bilingual"):
                    runs = results.with_settings(way=way)
                    if not runs:
                        continue
                    before = self._tokens_before(results, way)
                    tokens = [record["tokens"] + before for record in runs[0].evaluations]
                    bits = [
                        fmean(language_bits(run, run.evaluations[number], language) for run in runs)
                        for number in range(len(tokens))
                    ]
                    place.plot(tokens, bits, "o-", label=self._label(way))
                place.set(xlabel="tokens", ylabel="held-out bits per byte", title=language)

        caption = "Held-out bits per byte of each language over the tokens of all stages, mean over seeds."
        return picture("transfer", caption, draw, columns=2)


def _at_end(language: str) -> Callable[[Result], float]:
    return lambda result: language_bits(result, result.last, language)


def _at_start(language: str) -> Callable[[Result], float]:
    return lambda result: language_bits(result, result.evaluations[0], language)
