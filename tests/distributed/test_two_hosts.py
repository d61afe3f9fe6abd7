"""A run on two hosts, started by the script that users start theirs with: two network namespaces, joined by a link."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.distributed.hosts import Hosts, refusal
from tests.training.tiny_run import ROOT, losses, records, train_here, write_config, write_tokens

REFUSAL = refusal()
pytestmark = [pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL), pytest.mark.slow]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with Hosts() as made:
        yield made


def finish(*processes: subprocess.Popen[str], within: float = 120) -> list[tuple[int, str]]:
    """(exit code, stderr) of each torchrun."""
    deadline = time.monotonic() + within
    try:
        errors = [process.communicate(timeout=max(1, deadline - time.monotonic()))[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def error_lines(ended: list[tuple[int, str]]) -> list[str]:
    return [line for _, error in ended for line in error.splitlines() if line.startswith("error:")]


def assert_succeeded(ended: list[tuple[int, str]]) -> None:
    assert [code for code, _ in ended] == [0, 0], ended
    assert error_lines(ended) == []


def assert_same_losses(ours: Path, theirs: Path) -> None:
    left, right = losses(ours), losses(theirs)
    assert [step for step, *_ in left] == [step for step, *_ in right]
    for one, other in zip(left, right, strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-6)


def await_step(folder: Path, step: int, running: list[subprocess.Popen[str]], within: float = 90) -> None:
    """Until a run has reported a step."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline and all(process.poll() is None for process in running):
        if (folder / "metrics.jsonl").exists() and any(record["step"] >= step for record in records(folder)):
            return
        time.sleep(0.05)
    raise AssertionError(f"the run did not reach step {step}: {finish(*running, within=5)}")


@pytest.mark.parametrize("processes", [1, 2])
def test_same_losses_as_one_host(tmp_path: Path, hosts: Hosts, processes: int) -> None:
    config = write_config(tmp_path)
    before = hosts.sent(0), hosts.sent(1)
    ended = finish(*(hosts.start(number, config, processes=processes) for number in (0, 1)))
    assert_succeeded(ended)
    assert hosts.sent(0) - before[0] > 100_000, "gradients went over the link"
    assert hosts.sent(1) - before[1] > 100_000
    train_here(config, "--run.dir", str(tmp_path / "alone"))
    assert_same_losses(tmp_path / "run", tmp_path / "alone")


def test_a_mistake_that_all_ranks_find_is_one_line(tmp_path: Path, hosts: Hosts) -> None:
    config = write_config(tmp_path)
    options = ("--train.global_batch_size", "6")
    ended = finish(*(hosts.start(number, config, *options, processes=2) for number in (0, 1)))
    assert all(code != 0 for code, _ in ended)
    assert error_lines(ended) == [
        "error: train.global_batch_size: 6 is not a multiple of train.micro_batch_size x ranks = 2 x 4"
    ]
    assert not (tmp_path / "run").exists()


def test_a_mistake_that_one_host_finds_is_its_line(tmp_path: Path, hosts: Hosts) -> None:
    """The other host, sound, waits for its ranks no longer than it takes to hear of it, and says nothing."""
    config = write_config(tmp_path)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    other = write_config(damaged, run__dir=str(tmp_path / "run"))
    (damaged / "zh.idx").unlink()
    ended = finish(hosts.start(0, config), hosts.start(1, other), within=60)
    assert all(code != 0 for code, _ in ended)
    (line,) = error_lines(ended)
    assert str(damaged / "zh.idx") in line
    assert line in ended[1][1]


def test_hosts_that_see_other_token_files(tmp_path: Path, hosts: Hosts) -> None:
    config = write_config(tmp_path)
    (tmp_path / "other").mkdir()
    other = write_config(tmp_path / "other", run__dir=str(tmp_path / "run"))
    write_tokens(tmp_path / "other" / "zh", "zh", documents=299, seed=1)
    ended = finish(hosts.start(0, config), hosts.start(1, other), within=60)
    assert all(code != 0 for code, _ in ended)
    (line,) = error_lines(ended)
    assert "rank 1 of 2 and rank 0 see different token files" in line


@pytest.fixture
def startup(tmp_path: Path) -> Callable[[str], str]:
    """Gives the PYTHONPATH under which Python runs a text when it starts."""

    def with_text(text: str) -> str:
        (tmp_path / "startup").mkdir()
        (tmp_path / "startup" / "sitecustomize.py").write_text(text)
        return f"{tmp_path / 'startup'}:{ROOT}"

    return with_text


def test_mixed_versions_of_torch(tmp_path: Path, hosts: Hosts, startup: Callable[[str], str]) -> None:
    config = write_config(tmp_path)
    path = startup("import os\nif 'RANK' in os.environ:\n    import torch\n    torch.__version__ = '2.99.0'\n")
    ended = finish(hosts.start(0, config), hosts.start(1, config, PYTHONPATH=path), within=60)
    assert all(code != 0 for code, _ in ended)
    (line,) = error_lines(ended)
    assert re.search(
        r"ranks run on different software: torch is \S+ on rank 0 \(host-0\); 2\.99\.0 on rank 1 \(host-1\)", line
    )
    assert not (tmp_path / "run").exists()


def test_a_rank_that_dies_in_the_rendezvous(tmp_path: Path, hosts: Hosts, startup: Callable[[str], str]) -> None:
    config = write_config(tmp_path)
    path = startup("import os\nif 'RANK' in os.environ:\n    os.kill(os.getpid(), 9)\n")
    options = ("--distributed.timeout_minutes", "0.1")
    ended = finish(hosts.start(0, config, *options), hosts.start(1, config, *options, PYTHONPATH=path), within=60)
    assert all(code != 0 for code, _ in ended)
    (line,) = error_lines(ended)
    assert re.search(r"1 of 2 ranks came together within 0\.1 minutes .*missing: rank 1;", line)
    assert not (tmp_path / "run").exists()


def test_a_world_that_never_completes(tmp_path: Path, hosts: Hosts) -> None:
    config = write_config(tmp_path)
    ((code, error),) = finish(hosts.start(0, config, JOIN_TIMEOUT="5"), within=60)
    assert code != 0
    assert error.strip().splitlines()[-1].startswith("torch.distributed.elastic.rendezvous.api.RendezvousTimeoutError")


def test_a_rank_that_is_killed_starts_again_with_all_others(tmp_path: Path, hosts: Hosts) -> None:
    """torchrun on both hosts goes on from the newest checkpoint; the host whose rank lived counts no restart."""
    config = write_config(tmp_path, train__steps=60, train__checkpoint_every=5, train__eval_every=0)
    running = [hosts.start(number, config, MAX_RESTARTS="1") for number in (0, 1)]
    await_step(tmp_path / "run", 12, running)
    (worker,) = Path(f"/proc/{running[1].pid}/task/{running[1].pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    ended = finish(*running, within=150)
    assert [code for code, _ in ended] == [0, 0], ended
    train_here(config, "--run.dir", str(tmp_path / "alone"))
    assert_same_losses(tmp_path / "run", tmp_path / "alone")


def test_a_link_that_is_cut(tmp_path: Path, hosts: Hosts) -> None:
    """The run ends on both hosts, and the same command goes on when the link is up again."""
    config = write_config(tmp_path, train__steps=300, train__checkpoint_every=10, train__eval_every=0)
    options = ("--distributed.timeout_minutes", "0.3")
    running = [hosts.start(number, config, *options) for number in (0, 1)]
    await_step(tmp_path / "run", 25, running)
    hosts.ip(0, "link", "set", hosts.links[0], "down")
    cut = time.monotonic()
    ended = finish(*running, within=150)
    print(f"ended {time.monotonic() - cut:.0f} s after the cut: {error_lines(ended)}")
    assert all(code != 0 for code, _ in ended)
    stopped_at = records(tmp_path / "run")[-1]["step"]
    assert stopped_at < 300
    for _, error in ended:
        assert len([line for line in error.splitlines() if line.startswith("error:")]) <= 1, error
    assert error_lines(ended)
    hosts.ip(0, "link", "set", hosts.links[0], "up")
    last = str(max(int(path.name[5:]) for path in (tmp_path / "run" / "checkpoints").iterdir()) + 20)
    assert_succeeded(finish(*(hosts.start(number, config, *options, "--train.stop_after", last) for number in (0, 1))))
    train_here(config, "--run.dir", str(tmp_path / "alone"), "--train.stop_after", last)
    assert_same_losses(tmp_path / "run", tmp_path / "alone")


def test_bytes_on_a_slow_link(tmp_path: Path, hosts: Hosts) -> None:
    """What a step sends, counted by the interface: of two ranks each sends half of the gradients and half of the new
    parameters, in fp32 here, and a little for flags and losses."""
    for number in (0, 1):
        command = f"tc qdisc add dev {hosts.links[number]} root tbf rate 50mbit burst 64kb latency 200ms"
        try:
            hosts.check_call(number, *command.split())
        except (subprocess.CalledProcessError, FileNotFoundError):
            pytest.skip("no tc, or a kernel without tbf")
    config = write_config(tmp_path, model__mindllm__hidden_size=128, model__mindllm__ffn_size=256, train__eval_every=0,
                          train__eval_tokens=32, train__checkpoint_every=0)  # fmt: skip
    sent = []
    for steps in (5, 25):
        before = hosts.sent(1)
        folder = tmp_path / f"run{steps}"
        options = ("--train.steps", "30", "--train.stop_after", str(steps), "--run.dir", str(folder))
        assert_succeeded(finish(*(hosts.start(number, config, *options) for number in (0, 1))))
        sent.append(hosts.sent(1) - before)
    a_step = (sent[1] - sent[0]) / 20
    vocab, hidden, ffn, layers = 97, 128, 256, 2
    parameters = vocab * hidden + hidden + layers * (4 * hidden * hidden + 3 * hidden * ffn + 2 * hidden)
    print(f"{a_step:.0f} bytes a step for {parameters} parameters: {a_step / parameters:.2f} a parameter")
    assert 0.95 * 4 < a_step / parameters < 1.3 * 4
