"""WSD: one run at a constant learning rate, from whose checkpoints branches decay at many budgets (MiniCPM, arXiv
2404.06395, sections 4 and 5), against cosine runs of the same budgets on the same samples.

The stable run is a chain of trials, each of which goes on from the one before to the next point at which a branch
leaves. Each stretch of the chain is a block of the plan, since a block once begun keeps its size; so branches and
cosine runs of one budget read the same samples in the same order. A larger budget prolongs the chain, and leaves what
has been trained as it is. What the trials came to is read in analysis.py.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mindllm_engine.errors import ConfigError
from mindllm_engine.studies.findings import Findings
from mindllm_engine.studies.results import Results
from mindllm_engine.studies.trials import Trial


@dataclass
class InstructionConfig:
    """Instruction text mixed into the decay, against the same text after it (MiniCPM, section 5)."""

    weights: dict[str, float]
    """Ratio of the sources that hold instructions (tools/write_instruction_text.py); the runs' block must not name
    them."""
    steps: int
    """Steps on instructions alone after the decay, with the learning rate at its end (`optim.schedule.min_lr`)."""
    share: float = 0.5
    """Of the decay's tokens, where instructions are mixed in."""


@dataclass
class WsdConfig:
    """Decay branches of one stable run against cosine runs, decays of several lengths, and instructions in the decay.
    The runs' config has one block without a budget, which says the mixture of pre-training."""

    budgets: list[int]
    """Steps of whole runs; each has a branch and a cosine run of its own."""
    compared_at: int
    """One of the budgets: where decays of other lengths branch off, and those with instructions."""
    decay: float = 0.1
    """Share of a budget's steps over which its branch decays."""
    other_decays: list[float] = field(default_factory=lambda: [0.025, 0.05, 0.2])
    """Shares of the steps of `compared_at`."""
    instruction: InstructionConfig | None = None
    """Leave it out to compare schedules only."""
    equal_within: float = 0.01
    """Nats a token within which two held-out losses count as equal."""

    def trials(self, base: Mapping[str, Any], seeds: list[int], finished: Results | None) -> list[Trial]:
        """For each seed the stable chain, then its branches, the cosine runs, and what goes on from branches.

        Raises:
            ConfigError: shares and budgets that leave no room for each other, or runs that do not suit them.
        """
        self._check(base)
        return [trial for seed in seeds for trial in _CourseOfSeed(self, base, seed).trials()]

    def analyse(self, results: Results, seeds: list[int]) -> Findings:
        """Claims on equal ends, on lengths of decay, on cost, and on instructions. Raises DataError."""
        from mindllm_engine.studies.wsd.analysis import wsd_findings

        return wsd_findings(self, results)

    def branch_point(self, budget: int, share: float) -> int:
        """The step after which a budget's branch decays, as the schedule rounds it."""
        return budget - round(share * budget)

    def branch_points(self) -> list[int]:
        """Where branches leave the stable run, in rising order."""
        points = {self.branch_point(budget, self.decay) for budget in self.budgets}
        return sorted(points | {self.branch_point(self.compared_at, share) for share in self.other_decays})

    def periods(self) -> tuple[int, int, int] | None:
        """(shorter, steps, longer): the second budget, at which cosine runs of the first's and the third's period end
        as well; None for fewer than three budgets."""
        first = sorted(self.budgets)[:3]
        return (first[0], first[1], first[2]) if len(first) == 3 else None

    def _check(self, base: Mapping[str, Any]) -> None:
        if not self.budgets or len(set(self.budgets)) < len(self.budgets):
            raise ConfigError(f"wsd.budgets: {self.budgets} must be different numbers of steps, one at least")
        if self.compared_at not in self.budgets:
            raise ConfigError(f"wsd.compared_at: {self.compared_at} must be one of wsd.budgets = {self.budgets}")
        shares = [self.decay, *self.other_decays]
        if len(set(shares)) < len(shares) or not all(0 < share < 1 for share in shares):
            raise ConfigError(f"wsd.other_decays: with wsd.decay they are {shares}; give different shares in (0, 1)")
        if not self.equal_within >= 0:
            raise ConfigError(f"wsd.equal_within: {self.equal_within} must not be negative")
        for budget, share in [(min(self.budgets), self.decay), *((self.compared_at, other) for other in shares)]:
            if self.branch_point(budget, share) == budget:
                raise ConfigError(f"wsd.other_decays: {share:g} of {budget} steps is no step; raise one of them")
        warmup = int(_schedule(base).get("warmup_steps", 0))
        if self.branch_points()[0] <= warmup:
            raise ConfigError(
                f"wsd.budgets: a branch would leave at step {self.branch_points()[0]}, within "
                f"optim.schedule.warmup_steps = {warmup}; raise the smallest budget or shorten the warm-up"
            )
        _pretraining_block(base)
        if self.instruction is not None:
            self._check_instruction(self.instruction, base)

    def _check_instruction(self, instruction: InstructionConfig, base: Mapping[str, Any]) -> None:
        block = _pretraining_block(base)
        if not instruction.weights or not all(weight > 0 for weight in instruction.weights.values()):
            raise ConfigError("wsd.instruction.weights: name one source at least, each with a ratio above 0")
        if not 0 < instruction.share < 1:
            raise ConfigError(f"wsd.instruction.share: {instruction.share} must lie in (0, 1)")
        if instruction.steps < 1:
            raise ConfigError(f"wsd.instruction.steps: {instruction.steps} must be at least 1")
        if not block.get("weights") or block.get("languages") or block.get("categories"):
            raise ConfigError(
                "data.blocks: to mix instructions in, the block must give `weights`, and nothing but them"
            )
        if both := sorted(block["weights"].keys() & instruction.weights.keys()):
            raise ConfigError(f"wsd.instruction.weights: {both[0]} is read in pre-training already; take it out of one")
        if not _schedule(base).get("min_lr"):
            raise ConfigError("optim.schedule.min_lr: what follows the decay is trained with it; it must be above 0")


class _CourseOfSeed:
    """All trials of one seed."""

    def __init__(self, config: WsdConfig, base: Mapping[str, Any], seed: int) -> None:
        self.config, self.base, self.seed = config, base, seed
        self.block = _pretraining_block(base)
        seq_len = self.block.get("seq_len") or base["data"]["seq_len"]
        self.tokens_a_step = int(base["train"]["global_batch_size"]) * int(seq_len)

    def trials(self) -> list[Trial]:
        """The stable chain first, and each trial after the one that it needs."""
        config = self.config
        branches = [self._branch(budget, config.decay) for budget in config.budgets]
        branches += [self._branch(config.compared_at, share) for share in config.other_decays]
        cosines = [self._cosine(budget) for budget in config.budgets]
        instructed = self._instructed(config.instruction) if config.instruction else []
        return [*self._stable(), *branches, *cosines, *self._other_periods(), *instructed]

    def _stable(self) -> list[Trial]:
        points = self.config.branch_points()
        return [
            self._trial(
                self._stable_name(point),
                {"kind": "stable"},
                {"optim.schedule.kind": "constant"},
                self._pretraining(points[: place + 1]),
                (self._stable_name(points[place - 1]), points[place - 1]) if place else None,
            )
            for place, point in enumerate(points)
        ]

    def _branch(self, budget: int, share: float) -> Trial:
        point = self.config.branch_point(budget, share)
        return self._trial(
            self._branch_name(budget, share),
            {"kind": "wsd", "decay": share},
            {"optim.schedule.kind": "wsd", "optim.schedule.decay_fraction": share},
            self._pretraining(self._ends_up_to(point, budget)),
            (self._stable_name(point), point),
        )

    def _cosine(self, budget: int) -> Trial:
        ends = self._ends_up_to(self.config.branch_point(budget, self.config.decay), budget)
        changes = {"optim.schedule.kind": "cosine"}
        return self._trial(
            f"cosine{budget}_seed{self.seed}", {"kind": "cosine"}, changes, self._pretraining(ends), None
        )

    def _other_periods(self) -> list[Trial]:
        """Cosine runs whose steps S are not their period T (section 4.1): stopped before it is over, and prolonged at
        the rate in which it ends. Until S they read what the fitting run reads, the second in another order."""
        if (periods := self.config.periods()) is None:
            return []
        shorter, steps, longer = periods
        fitting, over = self._cosine(steps), self._cosine(shorter)
        stopped = self._trial(
            f"cosine{longer}_until{steps}_seed{self.seed}",
            {"kind": "cosine_stopped"},
            {"optim.schedule.kind": "cosine", "train.stop_after": steps, "train.eval_every": steps},
            [*fitting.changes["data.blocks"], self._stretch(longer - steps, self.block)],
            None,
        )
        stopped = replace(stopped, settings={**stopped.settings, "steps": steps})
        rate = float(_schedule(self.base).get("min_lr") or 0)
        if not rate:  # there is nothing to prolong
            return [stopped]
        prolonged = self._trial(
            f"cosine{shorter}_until{steps}_seed{self.seed}",
            {"kind": "cosine_prolonged"},
            {"optim.schedule.kind": "constant", "optim.lr": rate},
            [*over.changes["data.blocks"], self._stretch(steps - shorter, self.block)],
            (over.name, shorter),
        )
        return [stopped, prolonged]

    def _instructed(self, instruction: InstructionConfig) -> list[Trial]:
        """Three ways to the same: instructions in the decay and after it; as many tokens in all, instructions after the
        decay only; and so until there were as many tokens of instructions (A-2, A-1 and B-2 of the paper's Table 1)."""
        config, budget = self.config, self.config.compared_at
        point = config.branch_point(budget, config.decay)
        mixed = self._trial(
            f"mixed{budget}_seed{self.seed}",
            {"kind": "mixed"},
            {"optim.schedule.kind": "wsd", "optim.schedule.decay_fraction": config.decay},
            [*self._pretraining(self._ends_up_to(point, point)), self._mixture(instruction, budget - point)],
            (self._stable_name(point), point),
        )
        after = self._instructions(instruction, instruction.steps)
        in_decay = self._instructions(instruction, max(1, round(instruction.share * (budget - point))))
        plain_tuned = self._tuned("plain_tuned", self._branch(budget, config.decay), after)
        return [
            mixed,
            self._tuned("mixed_tuned", mixed, after),
            plain_tuned,
            self._tuned("plain_tuned_longer", plain_tuned, in_decay),
        ]

    def _tuned(self, kind: str, parent: Trial, block: dict[str, Any]) -> Trial:
        """Another trial prolonged by a block of instructions."""
        rate = float(_schedule(self.base)["min_lr"])
        return self._trial(
            f"{kind}{self.config.compared_at}_seed{self.seed}",
            {"kind": kind},
            {"optim.schedule.kind": "constant", "optim.lr": rate},
            [*parent.changes["data.blocks"], block],
            (parent.name, parent.changes["train.steps"]),
        )

    def _trial(
        self,
        name: str,
        settings: Mapping[str, Any],
        schedule: Mapping[str, Any],
        blocks: list[dict[str, Any]],
        parent: tuple[str, int] | None,
    ) -> Trial:
        """A trial that ends where its blocks do."""
        steps = sum(block["tokens"] for block in blocks) // self.tokens_a_step
        changes = {"run.seed": self.seed, "train.steps": steps, "data.blocks": blocks, **schedule}
        return Trial(name, changes, {**settings, "steps": steps, "seed": self.seed}, continues=parent)

    def _pretraining(self, ends: Sequence[int]) -> list[dict[str, Any]]:
        """A block up to each of these steps."""
        return [self._stretch(end - begin, self.block) for begin, end in itertools.pairwise([0, *ends])]

    def _mixture(self, instruction: InstructionConfig, steps: int) -> dict[str, Any]:
        parts = ((self.block["weights"], 1 - instruction.share), (instruction.weights, instruction.share))
        weights = {
            name: share * weight / sum(ratios.values()) for ratios, share in parts for name, weight in ratios.items()
        }
        return self._stretch(steps, {**self.block, "weights": weights})

    def _instructions(self, instruction: InstructionConfig, steps: int) -> dict[str, Any]:
        return self._stretch(steps, {**self.block, "weights": dict(instruction.weights)})

    def _stretch(self, steps: int, block: Mapping[str, Any]) -> dict[str, Any]:
        return {**block, "tokens": steps * self.tokens_a_step}

    def _ends_up_to(self, point: int, end: int) -> list[int]:
        """The ends of the stable run's blocks until `point`, and then `end`."""
        ends = [stop for stop in self.config.branch_points() if stop <= point]
        return ends if end == point else [*ends, end]

    def _stable_name(self, point: int) -> str:
        return f"stable{point}_seed{self.seed}"

    def _branch_name(self, budget: int, share: float) -> str:
        return f"decay{share:g}_of{budget}_seed{self.seed}"


def _schedule(base: Mapping[str, Any]) -> Mapping[str, Any]:
    schedule: Mapping[str, Any] = (base.get("optim") or {}).get("schedule") or {}
    return schedule


def _pretraining_block(base: Mapping[str, Any]) -> Mapping[str, Any]:
    blocks = (base.get("data") or {}).get("blocks") or [{}]
    if len(blocks) > 1 or blocks[0].get("tokens") is not None:
        raise ConfigError("data.blocks: WSD gives blocks their budgets; give the runs one block without `tokens`")
    block: Mapping[str, Any] = blocks[0]
    return block
