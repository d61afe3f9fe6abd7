"""Two hosts on one machine: network namespaces with a link between them, each with its own host name.

Needs root, iproute2 and a kernel that permits namespaces; `refusal` says what is missing.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from tests.training.tiny_run import ROOT, environment

SCRIPT = ROOT / "configs" / "cluster" / "two_hosts.sh"
PORT = 29500


def run(*command: str) -> str:
    """The output of a command that must succeed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def refusal() -> str:
    """Why there can be no namespaces here, or "" if there can."""
    missing = [tool for tool in ("ip", "unshare", "awk") if shutil.which(tool) is None]
    if missing:
        return f"{missing[0]} is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with Hosts():
            return ""
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not permitted: {error.stderr.strip()}"


class Hosts:
    """Hosts 0 and 1, at 10.77.0.1 and 10.77.0.2. Their names lead to 127.0.1.1, as on many systems."""

    def __init__(self) -> None:
        self.spaces = [f"mindllm{os.getpid()}{side}" for side in "ab"]
        self.links = ["link-a", "link-b"]
        self.leader = f"10.77.0.1:{PORT}"

    def __enter__(self) -> "Hosts":
        self.names = tempfile.TemporaryDirectory()
        for number in (0, 1):
            text = f"127.0.0.1 localhost\n127.0.1.1 host-{number}\n"
            Path(self.names.name, str(number)).write_text(text)
        try:
            for space in self.spaces:
                run("ip", "netns", "add", space)
            first, second = zip(self.links, self.spaces, strict=True)
            run("ip", "link", "add", first[0], "netns", first[1], "type", "veth", "peer", "name", *second[:1], "netns",
                second[1])  # fmt: skip
            for number in (0, 1):
                self.ip(number, "addr", "add", f"10.77.0.{number + 1}/24", "dev", self.links[number])
                self.ip(number, "link", "set", "lo", "up")
                self.ip(number, "link", "set", self.links[number], "up")
                # torchrun's agents notice a cut link when the kernel does: here soon, by default after 15 minutes.
                self.check_call(number, "sh", "-c", "echo 5 > /proc/sys/net/ipv4/tcp_retries2")
        except subprocess.CalledProcessError:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Take everything down; a namespace's end of the link goes with it."""
        for space in self.spaces:
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)
        self.names.cleanup()

    def ip(self, number: int, *arguments: str) -> str:
        """`ip` on one host."""
        return run("ip", "-n", self.spaces[number], *arguments)

    def on(self, number: int, *command: str) -> list[str]:
        """The command line that runs a command on one host; each `exec`s the next, so that signals reach it."""
        rename = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'
        shell = ["unshare", "--uts", "--mount", "sh", "-c", rename, f"host-{number}", f"{self.names.name}/{number}"]
        return ["ip", "netns", "exec", self.spaces[number], *shell, *command]

    def check_call(self, number: int, *command: str) -> str:
        """A command on one host that must succeed."""
        return run(*self.on(number, *command))

    def start(
        self, number: int, config: Path, *options: str, processes: int = 1, **variables: str
    ) -> subprocess.Popen[str]:
        """`configs/cluster/two_hosts.sh` on one host."""
        command = [str(SCRIPT), self.leader, self.links[number], "--config", str(config), *options]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.Popen(
            self.on(number, *command),
            env={**environment(), "PATH": path, "PROCESSES": str(processes), "MAX_RESTARTS": "0", **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def sent(self, number: int) -> int:
        """Bytes that a host has sent over the link, with all headers."""
        return int(self.check_call(number, "cat", f"/sys/class/net/{self.links[number]}/statistics/tx_bytes"))
