"""What a run does about steps that are skipped one after the other: it goes back to weights from before, and past the
data that did it.

A single bad step is skipped on the device (`optim/step_guard.py`), and the host learns of it when it reports. After
`faults.roll_back_after` in a row the newest checkpoint from before them is loaded again: weights, moments, and what the
guard knew. The step number and the position in the data stay where they are, so that the schedule and the plan go on
undisturbed and what came between counts as done.
"""

from bisect import bisect_left

import torch
from torch import Tensor

from mindllm_engine.data.plan import Plan
from mindllm_engine.distributed.process_group import value_of_rank_0
from mindllm_engine.errors import DivergedError
from mindllm_engine.training.checkpoint import checkpoints, load_state, step_of
from mindllm_engine.training.setup import Run

REMEDY = "lower optim.lr, look at the data, or raise faults.sigma if nothing is wrong with it"


class LateNumber:
    """A number that the device computes at each step, told to the host without holding the device up.

    On a GPU it is that of the step before: the host waits for that step at most, with a whole step queued behind it.
    All ranks so learn the same number at the same step.
    """

    def __init__(self) -> None:
        self.sent: tuple[Tensor, torch.cuda.Event] | None = None

    def exchange(self, number: Tensor) -> int | None:
        """Send this step's number, () int64, and return the last one that has arrived; None before the first."""
        if number.device.type != "cuda":
            return int(number)
        arrived, self.sent = self.sent, begin_copy(number)
        if arrived is None:
            return None
        copy, event = arrived
        event.synchronize()
        return int(copy)

    def drop(self) -> None:
        """Forget what is under way."""
        self.sent = None


def begin_copy(number: Tensor) -> tuple[Tensor, torch.cuda.Event]:
    """Start to copy a number from the GPU to pinned memory; it is there when the event has come."""
    copy = torch.empty((), dtype=number.dtype, pin_memory=True)
    copy.copy_(number, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return copy, event


class RollBacks:
    """Counts skipped steps, and takes a run back.

    Attributes:
        in_a_row: steps skipped since the last one accepted, as far as the host knows. Going back accepts none.
    """

    def __init__(self, run: Run) -> None:
        self.config = run.config.faults
        self.borders = borders(run.data.plan)
        self.number = LateNumber()
        self.in_a_row = 0
        self.last_target = 0
        self.times = 0  # gone back to that checkpoint

    def before_step(self, run: Run) -> None:
        """Let the guard forget what was normal where the step about to be done reads data of another kind."""
        samples = run.next_sample, run.next_sample + run.config.train.global_batch_size
        first, end = (bisect_left(self.borders, sample) for sample in samples)
        if first < end:
            run.guard.forget()

    def after_step(self, run: Run) -> None:
        """Count the step just done, and take the run back if it is one too many. All ranks do alike.

        Raises:
            DivergedError: there is nothing to go back to, or going back has not helped.
        """
        arrived = self.number.exchange(run.guard.in_a_row)
        if arrived is None:
            return
        self.in_a_row = arrived
        if 0 < self.config.roll_back_after <= self.in_a_row:
            self.go_back(run)
            self.number.drop()

    def go_back(self, run: Run) -> None:
        """Load the newest checkpoint from before the skipped steps; `run.step` and `run.next_sample` stay."""
        bad = f"step {run.step}: loss or gradient of {self.in_a_row} steps in a row were not finite or far above normal"
        run.checkpointer.wait()
        target = value_of_rank_0(newest_before_skips(run) if run.world.is_first else 0)
        if target == 0:
            raise DivergedError(f"{bad}, and there is no checkpoint from before them; {REMEDY}; or save more often")
        self.times = self.times + 1 if target == self.last_target else 1
        self.last_target = target
        if self.times > self.config.max_roll_backs:
            raise DivergedError(
                f"{bad}, also after going back to step {target} {self.config.max_roll_backs} times; {REMEDY}; or "
                "delete checkpoints, to start again from an earlier one"
            )
        skipped = run.guard.skipped.clone()
        checkpoint = next(path for path in checkpoints(run.checkpointer.folder) if step_of(path) == target)
        state = run.checkpointer.load(checkpoint, run.config.model)
        run.backend.write_state(run.backend.read_state(), run.step)  # updates count as done, as steps do
        run.guard.load_state(state.extra.get("guard", []))
        run.guard.skipped.copy_(skipped)
        if run.metrics is not None and run.progress is not None:
            run.metrics.write({"step": run.step, "rolled_back_to": target, "skipped_steps": int(skipped)})
            run.progress.say(f"{bad}: weights of step {target} again, and on with new data")


def newest_before_skips(run: Run) -> int:
    """The step of the newest checkpoint that was not saved amid skipped steps; 0 where there is none."""
    steps = [
        step_of(path)
        for path in checkpoints(run.checkpointer.folder)
        if not (guard := load_state(path).extra.get("guard")) or guard[2] == 0
    ]
    return max(steps, default=0)


def borders(plan: Plan) -> list[int]:
    """The samples at which the mixture changes: where a block begins, and in a blocked one a category; the first left
    out. What is normal on one side of them says little of the other."""
    firsts = []
    for block in plan.blocks:
        first = block.first_sample
        for category in block.categories if block.order == "blocked" else ():
            firsts.append(first)
            first += sum(block.quotas[source] for source in category)
        firsts.append(block.first_sample)
    return sorted(set(firsts) - {0})
