"""MiniCPM's wind tunnel (arXiv 2404.06395, section 3): what is found on narrow networks and holds on wide ones.

Three experiments in one study, on MiniCPM's network: the coordinate check, the best learning rate across widths, and
the search that gives the hyperparameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindllm_engine.studies.experiment import Experiment
from mindllm_engine.studies.findings import Findings
from mindllm_engine.studies.results import Results
from mindllm_engine.studies.trials import Trial
from mindllm_engine.studies.wind_tunnel.coordinates import CoordinatesConfig
from mindllm_engine.studies.wind_tunnel.learning_rates import LearningRatesConfig
from mindllm_engine.studies.wind_tunnel.search import SearchConfig


@dataclass
class WindTunnelConfig:
    """The three experiments; the runs' config holds the network and the paper's hyperparameters."""

    coordinates: CoordinatesConfig
    """Activation size against width."""
    learning_rates: LearningRatesConfig
    """Best learning rate against width."""
    search: SearchConfig
    """Embedding scale, branch scale, initial deviation and learning rate of the narrow network."""

    def trials(self, base: Mapping[str, Any], seeds: list[int], finished: Results | None) -> list[Trial]:
        """Those of all three."""
        return [trial for part in self._parts.values() for trial in part.trials(base, seeds, finished)]

    def analyse(self, results: Results, seeds: list[int]) -> Findings:
        """What all three find."""
        found = Findings("Wind tunnel", [])
        for name, part in self._parts.items():
            findings = part.analyse(results, seeds)
            found.claims += findings.claims
            found.tables += findings.tables
            found.pictures += findings.pictures
            found.numbers[name] = findings.numbers
        return found

    @property
    def _parts(self) -> dict[str, Experiment]:
        return {"coordinates": self.coordinates, "learning_rates": self.learning_rates, "search": self.search}
