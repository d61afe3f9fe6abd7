"""What an experiment gives a study: its trials, and the analysis of what they came to."""

from collections.abc import Mapping
from typing import Any, Protocol

from mindllm_engine.studies.findings import Findings
from mindllm_engine.studies.results import Results


class Experiment(Protocol):
    """A section of a study's config: a dataclass whose fields are the grid."""

    def trials(self, base: Mapping[str, Any], seeds: list[int], finished: Results | None) -> Any:
        """A list of `Trial`, those needed first standing first.

        It is asked again once all of them have ended, until it names no new one: what is best to try next may depend on
        `finished` (None at first). What it named before it must name again.

        Args:
            base: the runs' config before any change, as a mapping.
            seeds: of the initial weights and the order of data.

        Raises:
            ConfigError: a grid that makes no sense.
        """

    def analyse(self, results: Results, seeds: list[int]) -> Findings:
        """What the finished trials say of the papers' claims.

        Raises:
            DataError: too few points for a fit, runs that cannot be compared.
        """
