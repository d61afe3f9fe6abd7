"""The benchmark of ZeRO-1 at tiny sizes: all engines train alike, and what is counted is what was sent."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.loop_overhead import Periods
from benchmarks.network_namespace import enter_own_network, loopback_bytes
from benchmarks.process_memory import in_fresh_process
from benchmarks.zero1 import TINY
from benchmarks.zero1_messages import LAST_GRADIENT, Message, read_trace
from benchmarks.zero1_peers import ADAMW, MAKERS, MasterAdamW, Variant, by_decay, variants
from benchmarks.zero1_ranks import Memory
from benchmarks.zero1_rows import ENGINES, Result, rows_of
from benchmarks.zero1_task import Task

ROOT = Path(__file__).parents[2]
TASK = Task(TINY, 64, 2, torch.float32)
KEYS = {"name", "unit", "ours", "peer", "peer_name", "ratio", "bar", "holds", "reason"}
BYTES = 1 << 22


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A toy run."""
    path = tmp_path_factory.mktemp("zero1") / "rows.json"
    command = [sys.executable, "benchmarks/zero1.py", "--toy", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())


def of_engine(document: dict[str, Any], engine: str) -> dict[str, Any]:
    found = document["details"][0]["measured"][engine]
    if engine == "deepspeed" and found["reason"]:
        pytest.skip(f"DeepSpeed does not run here: {found['reason']}")
    assert found["reason"] is None
    return found


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_trains_the_same_network(document, engine: str) -> None:
    """In fp32 all losses are equal but for the order of sums, and they fall."""
    losses, reference = of_engine(document, engine)["losses"], of_engine(document, "ddp")["losses"]
    assert losses == pytest.approx(reference, rel=1e-6)
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_network_carries_what_the_messages_say(document, engine: str) -> None:
    found = of_engine(document, engine)
    parameters = int(document["network"].split()[0].replace(",", ""))
    # Each rank's share in fp32: a reduce-scatter and an all-gather of half of the parameters, or twice half of them.
    halves = {"ours": 2, "deepspeed": 3, "fsdp": 3, "ddp_zero": 3, "ddp": 2}[engine]
    assert found["bytes_sent"] == pytest.approx(halves * parameters / 2 * 4, rel=0.08)


@pytest.mark.slow
def test_rows_have_the_shape_that_benchmarks_share(document) -> None:
    assert document["rows"]
    assert all(row.keys() == KEYS for row in document["rows"])
    assert all(type(row["holds"]) in (bool, type(None)) for row in document["rows"])
    states = [row for row in document["rows"] if row["name"].startswith("optimizer state")]
    assert states[0]["ours"] == pytest.approx(6, rel=0.01)
    assert states[0]["holds"]
    assert document["rows"][-1]["name"].startswith("the loop's own work")
    assert document["rows"][-1]["ours"] > 0


def results(**changed: Any) -> dict[str, Result]:
    """Made-up figures: ours takes a second, each peer two, and sends half."""
    found = {}
    messages = [Message("all_reduce", size, True, early=early) for size, early in ((900_000, True), (100_000, False))]
    for engine in ENGINES:
        factor = 1 if engine == "ours" else 2
        found[engine] = Result(
            Variant(engine, "a variant", {}),
            seconds=[1.0 * factor, 1.2 * factor, 0.9 * factor],
            processor_seconds=[1.0, 1.0, 1.0],
            sent=1e6 * factor,
            messages=messages,
            memory=Memory(10**8, {"master weights": 4 * 55_000, "moments": 8 * 55_000}),
            losses=[5.0, 4.0],
        )
    for engine, fields in changed.items():
        for name, value in fields.items():
            setattr(found[engine], name, value)
    return found


def row_of(rows: list[dict[str, Any]], name: str, peer: str) -> dict[str, Any]:
    return next(row for row in rows if row["name"].startswith(name) and row["peer_name"].startswith(peer))


def test_ratios_and_bars() -> None:
    rows = rows_of(TASK, results(fsdp={"seconds": [0.5, 0.6, 0.45]}), ranks=2)
    step = row_of(rows, "step", "DeepSpeed")
    assert (step["ours"], step["peer"], step["ratio"], step["holds"]) == (1000, 2000, 2, True)
    assert row_of(rows, "step", "FSDP2")["holds"] is False  # the best of the others alone has a bar
    assert row_of(rows, "step", "plain DDP")["bar"] is None
    assert row_of(rows, "bytes sent", "DeepSpeed")["ratio"] == 2
    early = row_of(rows, "gradients whose", "none")
    assert (early["ours"], early["holds"]) == (0.9, True)


def test_an_engine_with_other_losses_is_void() -> None:
    rows = rows_of(TASK, results(deepspeed={"losses": [5.0, 4.1]}), ranks=2)
    assert row_of(rows, "losses of DeepSpeed", "plain DDP")["holds"] is False
    step = row_of(rows, "step", "DeepSpeed")
    assert step["ratio"] is None
    assert "void" in step["reason"]
    assert row_of(rows, "step", "plain DDP")["ratio"] == 2


def test_an_engine_that_cannot_run_gives_its_reason() -> None:
    rows = rows_of(TASK, results(deepspeed={"reason": "ModuleNotFoundError", "memory": None, "messages": []}), ranks=2)
    about = [row for row in rows if row["peer_name"].startswith("DeepSpeed")]
    assert about
    assert all(row["peer"] is None and "ModuleNotFoundError" in row["reason"] for row in about)


def test_not_a_number_is_no_loss() -> None:
    void = results(ours={"losses": [5.0, float("nan")]})
    rows = rows_of(TASK, void, ranks=2)
    assert row_of(rows, "losses of ours", "plain DDP")["holds"] is False
    assert row_of(rows, "step", "DeepSpeed")["holds"] is None


def test_a_trace_is_read() -> None:
    def event(name: str, ts: float, sizes: list[Any] | None = None, kind: str = "c10::BFloat16") -> dict[str, Any]:
        return {"name": name, "ts": ts, "dur": 1.0, "args": {"Input Dims": [sizes], "Input type": [kind]}}

    messages = read_trace(
        [
            event(LAST_GRADIENT, 20.0),
            event("c10d::allreduce_", 10.0, [[3000], [1000]], "TensorList"),
            event("gloo:all_reduce", 11.0, [4000]),
            event("c10d::allreduce_", 30.0, [[2]], "TensorList"),  # a norm
            event("gloo:all_reduce", 31.0, [2], "float"),
            event("c10d::broadcast_", 40.0, [[5000]], "TensorList"),
            event("gloo:broadcast", 41.0, [5000], "float"),
        ]
    )
    assert messages == [
        Message("all_reduce", 8000, carries_gradients=True, early=True),
        Message("broadcast", 20000, carries_gradients=False, early=False),
    ]
    assert messages[0].sent_by_a_rank(4, gloo=True) == 12000
    assert messages[1].sent_by_a_rank(2, gloo=True) == 10000


def send_to_itself() -> tuple[int, int] | None:
    """What the interface counted before anything was sent, and for so many bytes."""
    if not enter_own_network():
        return None
    idle = loopback_bytes()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        receiver, _ = server.accept()
        with receiver:
            left = BYTES
            while left:
                client.sendall(bytes(1 << 16))
                part = 1 << 16
                while part:
                    part -= len(receiver.recv(part))
                left -= 1 << 16
    return idle, loopback_bytes()


def test_a_network_of_its_own_counts_what_is_sent() -> None:
    counted = in_fresh_process(send_to_itself)
    if counted is None:
        pytest.skip("network namespaces are not allowed here")
    idle, sent = counted
    assert idle == 0
    assert BYTES <= sent < 1.05 * BYTES


def test_master_adamw_is_torchs_on_fp32_parameters() -> None:
    torch.manual_seed(0)
    sides = [torch.nn.ParameterList([torch.nn.Parameter(torch.ones(4, 3)), torch.nn.Parameter(torch.ones(3))])] * 1
    sides.append(torch.nn.ParameterList([torch.nn.Parameter(x.detach().clone()) for x in sides[0]]))
    ours = MasterAdamW(by_decay(sides[0]), **ADAMW)
    torchs = torch.optim.AdamW(by_decay(sides[1]), **ADAMW)
    for _ in range(5):
        for a, b in zip(*sides, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        ours.step()
        torchs.step()
    for a, b in zip(*sides, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_only_time_outside_of_watched_calls_is_the_loops_own() -> None:
    periods = Periods()
    inside, last = periods.watched(time.sleep), periods.watched(time.sleep, ends_step=True)
    for outside in (0.5, 0.02, 0.05):
        time.sleep(outside)
        inside(0.1)
        last(0.1)
    assert len(periods.outside) == 2  # when the first began is not known
    assert 0.02 <= periods.outside[0] < 0.1
    assert 0.05 <= periods.outside[1] < 0.15


def test_wrong_arguments_are_refused() -> None:
    command = [sys.executable, "benchmarks/zero1.py", "--toys"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--toys" in done.stderr


def test_every_engine_has_variants() -> None:
    assert {variant.engine for variant in variants(TASK)} == set(ENGINES) == set(MAKERS)
