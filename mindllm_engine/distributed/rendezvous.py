"""How the ranks of a run come together: all of them, in one attempt, running the same software, within a time.

torchrun's store outlives the workers, and on a restart holds what the last attempt wrote, while agents of different
hosts count restarts differently. So rank 0 draws a name for each attempt, and all that is said in it stands under that:

    attempt             the name; emptied when all ranks are there, so that only an attempt that failed leaves one
    NAME/rank/3         what rank 3 runs on (`Facts`)
    NAME/joined         how many ranks have come
    NAME/verdict        by rank 0: "" to start, or why not, which all ranks raise alike

A rank that has read the name of a dead attempt sees that no verdict comes and looks again.
"""

import hashlib
import json
import socket
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch.distributed import PrefixStore, Store

import mindllm_engine
from mindllm_engine import ranks
from mindllm_engine.errors import ConfigError, MindLLMError, OtherRankError

SECONDS_BETWEEN_LOOKS = (0.02, 2.0)  # the first and the longest
# What the other ranks wait longer than rank 0, so that they hear why it gave up.
SECONDS_MORE = 10.0

# The name of this process's attempt, once all ranks have come together.
_attempt = ""


@dataclass(frozen=True)
class Facts:
    """What must be equal on all ranks, by the name it has in a message."""

    torch: str
    mindllm_engine: str
    device: str


def facts(device: torch.device) -> Facts:
    """What this rank runs on."""
    return Facts(str(torch.__version__), engine_version(), device.type)


@cache
def engine_version() -> str:
    """The engine's version and eight hexadecimal digits of a hash of its Python files: hosts may have edited copies."""
    folder = Path(mindllm_engine.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return f"{mindllm_engine.__version__}+{digest.hexdigest()[:8]}"


def join(rank: int, world_size: int, device: torch.device, timeout_minutes: float) -> Store:
    """Wait for all ranks; returns their store, with keys of this attempt alone.

    Raises:
        ConfigError: the environment does not say where the ranks meet.
        MindLLMError: the store cannot be reached, not all ranks came in time, or they run on different software.
        OtherRankError: a rank that was awaited failed, or rank 0 did not come.
    """
    started, seconds = time.time(), timeout_minutes * 60
    store = _reach(rank, seconds)
    mine = json.dumps([asdict(facts(device)), socket.gethostname()])
    global _attempt
    part = partial(_lead, store, world_size) if rank == 0 else partial(_follow, store, rank)
    try:
        _attempt = ranks.within(seconds + 2 * SECONDS_MORE, lambda: part(mine, started, seconds))
    except RuntimeError as error:  # DistNetworkError, DistStoreError
        raise OtherRankError(
            f"the store of the run, on rank 0's host, is gone ({error}); look at what it says"
        ) from error
    ranks.came_together = True
    return PrefixStore(_attempt, store)


def connect(seconds: float) -> Store:
    """Another connection to the store that `join` returned: a store in use by one thread blocks the others."""
    return PrefixStore(_attempt, ranks.connect_to_store(seconds))


def _reach(rank: int, seconds: float) -> Store:
    host, port = ranks.store_address()
    try:
        return ranks.open_store(seconds)
    except RuntimeError as error:  # DistNetworkError, DistStoreError
        if "EADDRINUSE" in str(error):
            raise ConfigError(f"MASTER_PORT: {port} is taken on rank 0's host; choose another for all ranks") from error
        raise MindLLMError(
            f"rank {rank} on {socket.gethostname()} cannot reach rank 0's store at {host}:{port} within "
            f"{seconds / 60:g} minutes; check that MASTER_ADDR names rank 0's host here too, that it runs, and that "
            "no firewall lies between"
        ) from error


def _lead(store: Store, world_size: int, mine: str, started: float, seconds: float) -> str:
    """Rank 0's part: name the attempt, wait for all others, and tell them whether to start. Returns the name."""
    name = uuid.uuid4().hex
    own = PrefixStore(name, store)
    own.set("rank/0", mine)
    store.set("attempt", name)
    refusal = _missing(store, own, world_size, started, seconds) or difference(_read(own, world_size))
    store.set("attempt", "")
    own.set("verdict", refusal)
    if refusal:
        raise MindLLMError(refusal)
    return name


def _missing(store: Store, own: Store, world_size: int, started: float, seconds: float) -> str:
    """Waits for all ranks; which ones have not come in time, or "" when all are there."""
    for _ in _looks(started, seconds):
        if own.add("joined", 0) == world_size - 1:
            return ""
        _end_with_others(store)
    missing = [rank for rank in range(world_size) if not own.check([f"rank/{rank}"])]
    return (
        f"{world_size - len(missing)} of {world_size} ranks came together within {seconds / 60:g} minutes "
        f"(distributed.timeout_minutes); missing: {spans(missing)}; look at what their hosts say"
    )


def _follow(store: Store, rank: int, mine: str, started: float, seconds: float) -> str:
    """The other ranks' part: join the attempt that rank 0 named last, and wait for what it says. Returns its name."""
    name, own = "", None
    for _ in _looks(started, seconds + SECONDS_MORE):
        if own is not None and own.check(["verdict"]):
            refusal = own.get("verdict").decode()
            if refusal:
                raise MindLLMError(refusal)
            return name
        found = store.get("attempt").decode() if store.check(["attempt"]) else ""
        if found not in ("", name):
            name, own = found, PrefixStore(found, store)
            own.set(f"rank/{rank}", mine)
            own.add("joined", 1)
        _end_with_others(store)
    raise OtherRankError(f"rank 0 did not come within {seconds / 60:g} minutes; look at what its host says")


def _looks(started: float, seconds: float) -> Iterable[None]:
    """Looks at the store, further and further apart, until the time is over."""
    pause, longest = SECONDS_BETWEEN_LOOKS
    while time.time() < started + seconds:
        yield
        time.sleep(pause)
        pause = min(1.5 * pause, longest)


def _end_with_others(store: Store) -> None:
    if ranks.another_rank_failed(store):
        raise OtherRankError("another rank failed before all had come together; look at what it says")


def _read(own: Store, world_size: int) -> list[tuple[Facts, str]]:
    """What each rank runs on, and the name of its host."""
    told = [json.loads(value) for value in own.multi_get([f"rank/{rank}" for rank in range(world_size)])]
    return [(Facts(**given), host) for given, host in told]


def difference(told: list[tuple[Facts, str]]) -> str:
    """Why ranks that run on these facts, on these hosts, cannot work together: one line, or "" if they can."""
    for name in Facts.__dataclass_fields__:
        who: dict[str, list[int]] = defaultdict(list)
        for rank, (given, _) in enumerate(told):
            who[getattr(given, name)].append(rank)
        if len(who) > 1:
            parts = [
                f"{value} on {spans(some)} ({', '.join(sorted({told[rank][1] for rank in some})[:4])})"
                for value, some in who.items()
            ]
            return f"ranks run on different software: {name} is {'; '.join(parts)}; give all hosts the same"
    return ""


def spans(numbers: list[int]) -> str:
    """ "rank 3", "ranks 0-7, 9": ranks in ascending order."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(parts)}"
