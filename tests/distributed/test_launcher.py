"""A rank ends when the agent that started it is killed, and at once when it has gone before."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

RANK = """
import sys, time
from mindllm_engine.distributed.launcher import end_with_launcher
end_with_launcher()
print("ready", flush=True)
time.sleep(60)
"""
AGENT = f"""
import subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", {RANK!r}], start_new_session=True, stdout=subprocess.PIPE)
rank.stdout.readline()
print(rank.pid, flush=True)
time.sleep(60)
"""


def environment(port: int | None, **more: str) -> dict[str, str]:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "1"}
    return os.environ | (address if port is not None else {}) | more


def is_alive(pid: int) -> bool:
    """Zombies, which nobody may have asked about yet, are not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("launched", [True, False])
def test_ends_with_the_agent_that_is_killed(launched: bool) -> None:
    more = {"TORCHELASTIC_RUN_ID": "x"} if launched else {}
    agent = subprocess.Popen([sys.executable, "-c", AGENT], env=environment(None, **more), stdout=subprocess.PIPE)
    assert agent.stdout is not None
    rank = int(agent.stdout.readline())
    assert is_alive(rank)
    agent.kill()
    agent.wait()
    deadline = time.monotonic() + (5 if launched else 0.5)
    while is_alive(rank) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_alive(rank) == (not launched), "without torchrun, whoever starts a process decides"
    if not launched:
        os.kill(rank, signal.SIGKILL)


def test_an_agent_that_has_gone_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        launched = environment(port, TORCHELASTIC_RUN_ID="x", TORCHELASTIC_USE_AGENT_STORE="True")
        short = RANK.replace("time.sleep(60)", "")
        alive = subprocess.run([sys.executable, "-c", short], env=launched, capture_output=True, text=True, timeout=60)
        assert (alive.returncode, alive.stdout) == (0, "ready\n"), alive.stderr
    gone = subprocess.run([sys.executable, "-c", short], env=launched, capture_output=True, text=True, timeout=60)
    assert gone.returncode == 1
    assert f"rank 1: the agent of torchrun that holds the store at 127.0.0.1:{port} has ended" in gone.stderr
