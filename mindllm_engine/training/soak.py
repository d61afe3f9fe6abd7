"""Kill a run again and again, at random moments, and see that it ends as one that was never killed: `tools/soak.py`.

    RUN.DIR/config.yaml      what every run below runs
    RUN.DIR/reference/       the run that nothing happens to, and what it printed in reference.log
    RUN.DIR/run_001/ ...     runs killed and started again until they are finished; deleted when all was well

The same world size gives the same bits, so that equal means equal. Moments are drawn by phase: one drawn from the whole
time would mostly fall into start-up, and into the writing of a checkpoint hardly ever.
"""

import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any, Literal

from mindllm_engine.command_line import config_to_yaml
from mindllm_engine.errors import ConfigError, MindLLMError
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.soak_files import (
    Phase,
    RunWatch,
    SoakFailure,
    check_after_kill,
    check_at_end,
    numbers_of,
    resumed_at,
)
from mindllm_engine.training.soak_processes import Launch, Process, is_alive, send

Kind = Literal["rank", "all ranks", "agent", "SIGTERM"]
KIND_SHARES: dict[Kind, float] = {"rank": 0.4, "all ranks": 0.3, "agent": 0.3}
SIGTERM_SHARE = 0.2
KINDS: tuple[Kind, ...] = (*KIND_SHARES, "SIGTERM")
PHASE_SHARES: dict[Phase, float] = {"start-up": 0.15, "training": 0.3, "saving": 0.4, "ending": 0.15}
SECONDS_BETWEEN_LOOKS = 0.0005
SECONDS_BETWEEN_REPORTS = 0.2
SECONDS_OF_TRAINING = 0.05  # a kill comes up to so much after the step that was drawn
# torchrun gives ranks 30 seconds to end by themselves.
SECONDS_TO_BE_GONE = 60.0
SECONDS_THAT_ARE_A_HANG = 300.0
MOST_FAILURES = 5


@dataclass
class SoakConfig(RunConfig):
    """A run's configuration (`train.checkpoint_every` and `run.dir` matter most here), and how it is to be killed."""

    kills: int = 100
    """How often to kill."""
    ranks: int = 2
    """Ranks of each run."""
    seed: int = 1
    """Names the moments and victims; the time between the same two moments differs from run to run."""
    max_restarts: int = 0
    """How often torchrun's agent starts the ranks again by itself (its own option of that name)."""
    sigterm: bool = False
    """Send SIGTERM to the agent now and then, as cluster managers do, besides SIGKILL."""
    json: str | None = None
    """File to write the tally to."""

    def validate_soak(self) -> None:
        """Raises `ConfigError` naming the first key whose value is impossible."""
        self.validate(self.ranks)
        for name, least in (("kills", 1), ("ranks", 1), ("max_restarts", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least {least}")
        if self.train.checkpoint_every < 1:
            raise ConfigError("train.checkpoint_every: killed runs need checkpoints to go on from; set it above 0")
        if self.train.log_every != 1:
            raise ConfigError("train.log_every: must be 1, so that every step can be compared")
        if Path(self.run.dir).exists():
            raise ConfigError(f"run.dir: {self.run.dir} exists; delete it, or choose another")
        if self.json is not None and not Path(self.json).resolve().parent.is_dir():
            raise ConfigError(f"json: there is no folder for {self.json}; choose another file")


@dataclass(frozen=True)
class Kill:
    """What happened at one.

    Attributes:
        run: number of the run.
        step: last one recorded before it.
        newest_checkpoint: step from which the run went on; `step - newest_checkpoint` steps were repeated.
        half_written: whether a checkpoint's files were left without its name.
        seconds_until_gone: until no process of the run was left but an agent that restarts it.
    """

    run: int
    kind: Kind
    phase: Phase
    step: int
    newest_checkpoint: int
    half_written: bool
    seconds_until_gone: float


@dataclass
class Tally:
    """What has happened so far.

    Attributes:
        launches: times that torchrun was started for a run to be killed.
        agent_restarts: times that torchrun's agent started the ranks again.
        seconds_lost: from each kill until the step reached before was done again, over all kills.
        failures: what was not as it should be, each with the folder that is kept.
    """

    kills: list[Kill] = field(default_factory=list)
    runs_finished: int = 0
    launches: int = 0
    agent_restarts: int = 0
    seconds_lost: float = 0.0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def steps_repeated(self) -> int:
        return sum(kill.step - kill.newest_checkpoint for kill in self.kills)


# Called now and then with the tally and where the run at hand is.
Report = Callable[[Tally, str], None]


@dataclass(frozen=True)
class Moment:
    """When to kill what.

    Attributes:
        after: steps trained, or saves begun, since the run went on, that must have passed.
        delay: share of the phase's usual duration to wait for besides.
    """

    kind: Kind
    phase: Phase
    after: int
    delay: float


class Soak:
    """One soak test.

    Args:
        config: has been validated.
        pretrain: `tools/pretrain.py`.
        report: see `Report`.
    """

    def __init__(self, config: SoakConfig, pretrain: Path, report: Report) -> None:
        self.config = config
        self.pretrain = pretrain
        self.report = report
        self.folder = Path(config.run.dir)
        self.rng = random.Random(config.seed)
        self.tally = Tally()
        self.reference: list[dict[str, Any]] = []
        self.durations: dict[Phase, float] = {}
        self.behind: tuple[float, int] | None = None  # since when, and the step to be reached again
        self.last_report = float("-inf")

    def run(self) -> Tally:
        """The reference run, then runs that are killed, until there have been enough kills or too many failures.

        Raises:
            MindLLMError: the reference run fails.
        """
        start = time.monotonic()
        self.folder.mkdir(parents=True)
        run = RunConfig(**{entry.name: getattr(self.config, entry.name) for entry in fields(RunConfig)})
        (self.folder / "config.yaml").write_text(config_to_yaml(run), encoding="utf-8")
        self.run_reference()
        number = 0
        while len(self.tally.kills) < self.config.kills and len(self.tally.failures) < MOST_FAILURES:
            number += 1
            folder = self.folder / f"run_{number:03d}"
            try:
                self.run_and_kill(number, folder)
            except SoakFailure as failure:
                self.tally.failures.append(f"{failure} (kept: {folder}, {folder}.log)")
            else:
                self.tally.runs_finished += 1
                shutil.rmtree(folder)
                Path(f"{folder}.log").unlink()
            self.tally.seconds = time.monotonic() - start
        return self.tally

    def launch(self, folder: Path) -> Launch:
        """Start a run, or start it again."""
        return Launch(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *("--nproc-per-node", str(self.config.ranks), "--max-restarts", str(self.config.max_restarts)),
                *(str(self.pretrain), "--config", str(self.folder / "config.yaml"), "--run.dir", str(folder)),
            ],
            log_of(folder),
        )

    def run_reference(self) -> None:
        """The run that nothing happens to; measures how long the phases last."""
        folder = self.folder / "reference"
        watch = RunWatch(folder, self.config.train.steps)
        launch = self.launch(folder)
        began: dict[Phase, float] = {"start-up": time.monotonic()}
        phase: Phase = "start-up"
        lengths: dict[Phase, list[float]] = {"start-up": [], "training": [], "saving": [], "ending": []}
        try:
            while not launch.has_ended():
                now = watch.look()
                if now != phase:
                    lengths[phase].append(time.monotonic() - began[phase])
                    began[now] = time.monotonic()
                    phase = now
                if watch.step >= self.config.train.steps:
                    began.setdefault("ending", time.monotonic())
                self.tell("reference run", watch, now)
                time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            launch.end()
        if launch.popen.returncode != 0:
            raise MindLLMError(f"the run fails without being killed: {last_words(log_of(folder))}")
        self.durations = {
            "start-up": lengths["start-up"][0] if lengths["start-up"] else 1.0,
            "training": SECONDS_OF_TRAINING,
            "saving": median(lengths["saving"] or [0.01]),
            "ending": time.monotonic() - began.get("ending", time.monotonic()),
        }
        self.reference = numbers_of(folder)

    def run_and_kill(self, number: int, folder: Path) -> None:
        """Start a run until it is finished, killing it meanwhile.

        Raises:
            SoakFailure: it was not as it should be.
        """
        watch = RunWatch(folder, self.config.train.steps)
        finished = False
        while not finished:
            self.tally.launches += 1
            launch = self.launch(folder)
            try:
                finished = self.attend(number, launch, watch)
            finally:
                launch.end()
        self.catch_up()
        check_at_end(folder, self.folder / "reference", self.reference)

    def attend(self, number: int, launch: Launch, watch: RunWatch) -> bool:
        """Kill one launch of a run, several times where the agent restarts it; whether it came to its end instead."""
        log = log_of(watch.folder)
        for restarts_left in range(self.config.max_restarts, -1, -1):
            watch.begin()
            printed = log.stat().st_size
            moment = self.draw() if len(self.tally.kills) < self.config.kills else None
            ranks = self.wait_for(moment, number, launch, watch)
            phase, struck = watch.look(), time.monotonic()
            doomed = self.strike(moment.kind, launch, ranks) if moment is not None and ranks is not None else []
            if moment is None or not doomed:
                self.wait_for(None, number, launch, watch)
                if launch.popen.returncode != 0:
                    raise SoakFailure(f"exit code {launch.popen.returncode} without a kill: {last_words(log)}")
                check_resumed(watch, log, printed)
                return True
            agent_restarts = moment.kind in ("rank", "all ranks") and restarts_left > 0
            if agent_restarts:
                doomed.remove(launch.agent)
            gone_after = self.wait_until_gone(moment.kind, doomed)
            self.behind = self.behind or (struck, watch.step)
            check_resumed(watch, log, printed)
            half_written = bool(watch.leftovers() - watch.old_leftovers)
            newest, last = check_after_kill(watch.folder, self.reference, self.config.train.checkpoint_every)
            self.tally.kills.append(Kill(number, moment.kind, phase, last, newest, half_written, gone_after))
            if not agent_restarts:
                break
            self.tally.agent_restarts += 1
        return False

    def draw(self) -> Moment:
        """A random moment."""
        kinds = KIND_SHARES | ({"SIGTERM": SIGTERM_SHARE} if self.config.sigterm else {})
        [kind] = self.rng.choices([*kinds], [*kinds.values()])
        [phase] = self.rng.choices([*PHASE_SHARES], [*PHASE_SHARES.values()])
        after = {
            "training": self.rng.randint(1, 2 * self.config.train.checkpoint_every),
            "saving": self.rng.randint(1, 3),
        }
        return Moment(kind, phase, after.get(phase, 0), self.rng.random())

    def wait_for(self, moment: Moment | None, number: int, launch: Launch, watch: RunWatch) -> list[Process] | None:
        """The ranks, when the moment has come; None when the run has ended before. Without a moment, wait for that.

        Raises:
            SoakFailure: the run hangs.
        """
        start = moved = time.monotonic()
        ranks: list[Process] = []
        saves, before = 0, (watch.look(), watch.step)
        while not launch.has_ended():
            now = time.monotonic()
            place = watch.look(), watch.step
            saves += place[0] == "saving" != before[0]
            if place != before:
                moved, before = now, place
            elif now - moved > SECONDS_THAT_ARE_A_HANG:
                raise SoakFailure(f"{watch.folder}: stands still in {place[0]} after step {place[1]}")
            if place[0] != "start-up" and self.behind is not None and watch.step >= self.behind[1]:
                self.catch_up()
            if len(ranks) < self.config.ranks:
                ranks = launch.ranks()
            if moment is not None and (moment.kind in ("agent", "SIGTERM") or len(ranks) == self.config.ranks):
                wait = moment.delay * self.durations[moment.phase]
                if moment.phase == "start-up" and now - start >= wait:
                    return ranks
                if moment.phase != "start-up" and has_come(moment, place[0], watch, saves, self.config.train.steps):
                    time.sleep(wait)
                    return None if launch.has_ended() else ranks
            self.tell(f"run {number}", watch, place[0])
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return None

    def strike(self, kind: Kind, launch: Launch, ranks: list[Process]) -> list[Process]:
        """Kill; returns the processes that must be gone soon, or nothing where there was nothing left to kill."""
        victims = [process for process in ranks if is_alive(process)]
        if launch.has_ended() or (kind in ("rank", "all ranks") and not victims):
            return []
        if kind == "agent":
            return [launch.agent, *launch.kill_agent()]
        if kind == "SIGTERM":
            send(launch.agent, signal.SIGTERM)
        else:
            for rank in [self.rng.choice(victims)] if kind == "rank" else victims:
                send(rank, signal.SIGKILL)
        return [launch.agent, *ranks]

    def wait_until_gone(self, kind: Kind, processes: list[Process]) -> float:
        """Seconds that the rest of a run took to end.

        Raises:
            SoakFailure: some of it has not ended; it is killed then.
        """
        start = time.monotonic()
        while any(is_alive(process) for process in processes):
            if time.monotonic() - start > SECONDS_TO_BE_GONE:
                for process in processes:
                    send(process, signal.SIGKILL)
                raise SoakFailure(f"some of the run outlived a kill ({kind}) by {SECONDS_TO_BE_GONE:g} s")
            time.sleep(0.01)
        return time.monotonic() - start

    def catch_up(self) -> None:
        """The run is where it was before it was killed."""
        if self.behind is not None:
            self.tally.seconds_lost += time.monotonic() - self.behind[0]
            self.behind = None

    def tell(self, what: str, watch: RunWatch, phase: Phase) -> None:
        if time.monotonic() - self.last_report > SECONDS_BETWEEN_REPORTS:
            self.last_report = time.monotonic()
            self.report(self.tally, f"{what}, step {watch.step} of {watch.steps}, {phase}")


def has_come(moment: Moment, phase: Phase, watch: RunWatch, saves: int, steps: int) -> bool:
    """Whether a moment after start-up has come, its delay left aside."""
    if moment.phase == "training":
        return phase == "training" and watch.step - watch.first_step >= moment.after
    if moment.phase == "saving":
        return phase == "saving" and saves >= moment.after
    return watch.step >= steps


def check_resumed(watch: RunWatch, log: Path, printed: int) -> None:
    """That a run went on from the newest checkpoint there was.

    Raises:
        SoakFailure: it did not.
    """
    said = resumed_at(log, printed)
    if said is None and (watch.first_step == 0 or watch.look() == "start-up"):
        return
    if said != watch.first_step:
        raise SoakFailure(f"{watch.folder}: went on from step {said}; the newest checkpoint was {watch.first_step}")


def log_of(folder: Path) -> Path:
    """Where all that a run has printed stands."""
    return Path(f"{folder}.log")


def last_words(log: Path) -> str:
    """The last error in what a run has printed, or its last line."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if re.match(r"(\[rank\d+\]: )?(error|\w*Error): ", line)]
    return f"{(errors or lines or ['it printed nothing'])[-1]} ({log})"


def summary(tally: Tally) -> dict[str, Any]:
    """The tally as JSON."""
    return asdict(tally) | {"steps_repeated": tally.steps_repeated}
