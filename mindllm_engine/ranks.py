"""What the ranks of a run share beside their process group: torchrun's variables, one store, one voice for failures.

Floor 0: `command_line.run_tool` tells of failures through it, and `distributed/rendezvous.py` brings the ranks together
in the same store. torch is imported only where there are several ranks.

The store is a TCPStore at MASTER_ADDR:MASTER_PORT. Under torchrun an agent holds it, and it outlives restarts of the
workers; without torchrun rank 0 holds it.
"""

import hashlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, TypeVar, cast

from mindllm_engine.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed import Store

Answer = TypeVar("Answer")

# How long a rank that fails stays, so that the others can learn that it has told why before torchrun ends them all.
SECONDS_TO_STAY = 3.0
# A failure told within this time is not told again: ranks start up to so much apart, and torchrun repeats an attempt.
SECONDS_TOLD = 60.0
SECONDS_TO_REACH_STORE = 5.0
# When this attempt began, on this rank; `ranks` is among the first modules that a tool imports.
STARTED = time.time()
# Whether all ranks of this attempt have; `rendezvous.join` sets it.
came_together = False


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of ranks, from RANK and WORLD_SIZE; (0, 1) without them.

    Raises:
        ConfigError: they are not numbers, or contradict each other.
    """
    rank, size = (number_in_environment(name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    if not 0 <= rank < size:
        raise ConfigError(f"RANK={rank} does not lie below WORLD_SIZE={size}; start with torchrun, or set both")
    return rank, size


def number_in_environment(name: str, default: int) -> int:
    """A whole number in an environment variable. Raises ConfigError if it is none."""
    value = os.environ.get(name, "") or str(default)
    if not value.isdecimal():
        raise ConfigError(f"environment variable {name}: '{value}' is not a whole number")
    return int(value)


def store_address() -> tuple[str, int]:
    """Host and port of the store. Raises ConfigError if the environment does not name them."""
    host = os.environ.get("MASTER_ADDR", "")
    if not host or not os.environ.get("MASTER_PORT"):
        size = os.environ.get("WORLD_SIZE")
        raise ConfigError(
            f"WORLD_SIZE is {size}, but MASTER_ADDR and MASTER_PORT are not set; start with torchrun, or set them to a "
            "name of rank 0's host that all hosts resolve, and a free port on it"
        )
    return host, number_in_environment("MASTER_PORT", 0)


@cache
def open_store(seconds: float) -> "Store":
    """The store of all ranks; rank 0 holds it where no agent does. Stays open as long as the process lives.

    Raises:
        ConfigError: the environment does not say where it is.
        RuntimeError: it cannot be reached in time, or rank 0 cannot hold it (a DistNetworkError or DistStoreError).
    """
    agent_holds_it = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return connect_to_store(seconds, holds_it=rank_and_size()[0] == 0 and not agent_holds_it)


def connect_to_store(seconds: float, holds_it: bool = False) -> "Store":
    """A connection to the store, which must answer within the time, now and later. Raises what `open_store` does."""
    from torch.distributed import TCPStore

    host, port = store_address()
    timeout = timedelta(seconds=seconds)
    return TCPStore(host, port, is_master=holds_it, timeout=timeout, wait_for_workers=False, multi_tenant=True)


def is_mine_to_tell(message: str, of_another_rank: bool) -> bool:
    """Whether this rank is to print a failure, so that of ranks that fail alike one does.

    Args:
        message: what would be printed. Equal messages are told once, different ones each.
        of_another_rank: this rank fails only because another one did, which tells why itself: it waits for that, and
            tells its own side if nothing has been heard.

    A rank that cannot reach the store tells, in case of doubt: the first of its host at once, the others if they live
    longer than `SECONDS_TO_STAY`.
    """
    try:
        return within(2 * SECONDS_TO_REACH_STORE + SECONDS_TO_STAY, lambda: _is_first(message, of_another_rank))
    except (ConfigError, RuntimeError):
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(SECONDS_TO_STAY)
        return True


def _is_first(message: str, of_another_rank: bool) -> bool:
    store = open_store(SECONDS_TO_REACH_STORE)
    if of_another_rank:
        time.sleep(SECONDS_TO_STAY)
        heard = _was_told_since(store, "failure", time.time() - SECONDS_TOLD)
        return not heard and _is_first_to_tell(store, "of another rank")
    store.set("failure", repr(time.time()))
    if not came_together:
        store.set("failure before", repr(time.time()))
    return _is_first_to_tell(store, message)


def within(seconds: float, ask: Callable[[], Answer]) -> Answer:
    """What a call to the store returns, or raises.

    A TCPStore whose host is cut off answers neither with a value nor with its timeout until the kernel gives the
    connection up, after a quarter of an hour. The thread that waits for it is left behind.

    Raises:
        RuntimeError: no answer in time.
    """
    answers: queue.SimpleQueue[tuple[Answer | None, BaseException | None]] = queue.SimpleQueue()

    def wait_for_it() -> None:
        try:
            answers.put((ask(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=wait_for_it, daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise RuntimeError(f"the store of the run did not answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return cast(Answer, answer)


def another_rank_failed(store: "Store") -> bool:
    """Whether some rank has told of a failure of its own in this attempt, before all had come together.

    Ranks do not start at the same moment; but one that has failed stays, so that the next attempt begins later. Not so
    after all have come together: when a rank is killed, torchrun ends those that tell of it and starts anew at once.
    """
    return _was_told_since(store, "failure before", STARTED - SECONDS_TO_STAY)


def _was_told_since(store: "Store", key: str, seconds: float) -> bool:
    return store.check([key]) and float(store.get(key)) >= seconds


def _is_first_to_tell(store: "Store", message: str) -> bool:
    key, now = "failure/" + hashlib.sha256(message.encode()).hexdigest(), repr(time.time())
    told = store.compare_set(key, "", now).decode()  # what stands there: ours, where there was nothing
    if told != now and abs(float(now) - float(told)) > SECONDS_TOLD:  # in an earlier attempt
        return store.compare_set(key, told, now).decode() == now
    return told == now


def record_failure(message: str) -> None:
    """Leave a failure where torchrun looks for it, so that its own report names the cause."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        failure = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
        try:
            with open(path, "w") as file:
                json.dump({"message": failure}, file)
        except OSError as error:  # a full disk must not hide the failure itself
            print(f"warning: {path}: cannot be written ({error.strerror})", file=sys.stderr)
