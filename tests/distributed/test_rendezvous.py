"""How ranks come together: threads that share a real TCPStore, as torchrun's workers do, through attempts that fail."""

import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import PrefixStore, Store, TCPStore

from mindllm_engine import ranks
from mindllm_engine.distributed import rendezvous
from mindllm_engine.distributed.process_group import start_processes
from mindllm_engine.errors import ConfigError, MindLLMError, OtherRankError


@pytest.fixture(scope="module")
def server() -> TCPStore:
    """What torchrun's agent holds."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def client(server: TCPStore) -> TCPStore:
    return TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=20))


def told(software: str = "1.0", host: str = "a") -> str:
    return json.dumps([{"torch": software, "mindllm_engine": "0", "device": "cpu"}, host])


def attempt(
    connect: Callable[[], Store], softwares: list[str], absent: set[int], seconds: float = 15
) -> dict[int, object]:
    """What each rank gets, or raises, when all but the absent ones come at random moments."""
    results: dict[int, object] = {}

    def be_rank(rank: int) -> None:
        time.sleep(random.random() * 0.05)
        mine = told(softwares[rank], f"host{rank}")
        try:
            if rank == 0:
                name = rendezvous._lead(connect(), len(softwares), mine, time.time(), seconds)
            else:
                name = rendezvous._follow(connect(), rank, mine, time.time(), seconds)
            results[rank] = PrefixStore(name, connect())
        except MindLLMError as error:
            results[rank] = error

    present = [rank for rank in range(len(softwares)) if rank not in absent]
    threads = [threading.Thread(target=be_rank, args=(rank,)) for rank in present]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == present
    return results


def test_every_attempt_gets_keys_of_its_own(server: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty restarts on one store; some end before all ranks have come, rank 0 among the missing or not."""
    monkeypatch.setattr(rendezvous, "SECONDS_MORE", 0.2)
    root = f"run{time.time()}"
    complete = 0
    for number in range(20):
        size = 2 + number % 3
        absent = {random.randrange(size)} if number % 4 == 3 else set()
        results = attempt(lambda: PrefixStore(root, client(server)), ["1.0"] * size, absent, 0.3 if absent else 15)
        if absent:
            assert all(isinstance(result, MindLLMError) for result in results.values())
            continue
        complete += 1
        stores = [result for result in results.values() if isinstance(result, Store)]
        assert len(stores) == size, results
        assert not stores[1].check(["hello"]), "nothing of an earlier attempt"
        stores[0].set("hello", "from rank 0")
        assert all(store.get("hello") == b"from rank 0" for store in stores), "all ranks are in the same attempt"
    assert complete == 15


def test_missing_ranks_are_named_and_all_ranks_say_the_same(server: TCPStore) -> None:
    root = f"run{time.time()}"
    began = time.monotonic()
    results = attempt(lambda: PrefixStore(root, client(server)), ["1.0"] * 5, {2, 3}, seconds=0.6)
    assert time.monotonic() - began < 10
    messages = {str(error) for error in results.values()}
    assert messages == {
        "3 of 5 ranks came together within 0.01 minutes (distributed.timeout_minutes); missing: ranks 2-3; look at "
        "what their hosts say"
    }


def test_other_software_is_one_message_for_all_ranks(server: TCPStore) -> None:
    root = f"run{time.time()}"
    results = attempt(lambda: PrefixStore(root, client(server)), ["2.13.0", "2.13.0", "2.11.0"], set())
    messages = {str(error) for error in results.values()}
    assert messages == {
        "ranks run on different software: torch is 2.13.0 on ranks 0-1 (host0, host1); 2.11.0 on rank 2 (host2); give "
        "all hosts the same"
    }
    assert all(type(error) is MindLLMError for error in results.values())


def test_a_rank_that_fails_ends_the_wait_of_the_others(server: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect() -> Store:
        return PrefixStore(root, client(server))

    root = f"run{time.time()}"
    monkeypatch.setattr(ranks, "open_store", lambda seconds: connect())
    failing = threading.Timer(0.3, lambda: ranks.is_mine_to_tell("x: damaged", of_another_rank=False))
    failing.start()
    began = time.monotonic()
    results = attempt(connect, ["1"] * 3, {2})
    assert time.monotonic() - began < 8
    assert {type(error) for error in results.values()} == {OtherRankError}


def test_equal_failures_are_told_once_and_again_after_a_while(
    server: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PrefixStore(f"run{time.time()}", client(server))
    assert [ranks._is_first_to_tell(store, "x: damaged") for _ in range(3)] == [True, False, False]
    assert ranks._is_first_to_tell(store, "y: damaged")
    monkeypatch.setattr(ranks, "SECONDS_TOLD", 0.0)
    assert ranks._is_first_to_tell(store, "x: damaged")


@given(st.sets(st.integers(0, 40)).map(sorted).filter(bool))
def test_spans_say_which_ranks(numbers: list[int]) -> None:
    text = rendezvous.spans(numbers)
    read: list[int] = []
    for part in text.split(" ", 1)[1].split(", "):
        first, _, last = part.partition("-")
        read += range(int(first), int(last or first) + 1)
    assert read == numbers
    assert text.startswith("ranks ") == (len(numbers) > 1)


@contextmanager
def variables(monkeypatch: pytest.MonkeyPatch, **values: str) -> Iterator[None]:
    with monkeypatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"):
            patch.delenv(name, raising=False)
        for name, value in values.items():
            patch.setenv(name, value)
        yield


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 does not lie below WORLD_SIZE=2"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK: 'one' is not a whole number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK: '-1' is not a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT are not set; start with torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "x"}, "MASTER_PORT: 'x' is not"),
    ],
)
def test_an_environment_that_says_nothing_sensible(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], message: str
) -> None:
    with variables(monkeypatch, **values), pytest.raises(ConfigError, match=message):
        start_processes(0.01)


def test_an_address_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    with (
        variables(monkeypatch, RANK="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1"),
        pytest.raises(
            MindLLMError, match=r"rank 1 on .* cannot reach rank 0's store at 127\.0\.0\.1:1 within 0.05 min"
        ),
    ):
        rendezvous.join(1, 2, torch.device("cpu"), 0.05)
    assert time.monotonic() - began < 20


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("0.0.0.0", 0)) as other:
        port = str(other.getsockname()[1])
        with (
            variables(monkeypatch, RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
            pytest.raises(ConfigError, match=f"MASTER_PORT: {port} is taken on rank 0's host"),
        ):
            rendezvous.join(0, 2, torch.device("cpu"), 0.05)
