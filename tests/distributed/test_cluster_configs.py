"""What `configs/cluster` starts: its command lines mean something to the tools, and the scripts do what they say.

The Slurm script runs under stand-ins for `srun` and `scontrol`, which start one task a "node" on this machine; signals,
torchrun and the run are real. The manifest is held against the fields of PyTorchJob, kubeflow.org/v1.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mindllm_engine.command_line import parse_arguments
from mindllm_engine.errors import ConfigError
from mindllm_engine.training.config import RunConfig
from tests.training.tiny_run import ROOT, environment, losses, records, train_here, write_config

CLUSTER = ROOT / "configs" / "cluster"
MANIFEST = CLUSTER / "pytorchjob.yaml"
SCRIPTS = [CLUSTER / "slurm.sh", CLUSTER / "two_hosts.sh"]

# kubeflow.org/v1, by sdk/python/docs of kubeflow/training-operator; below `template` stands a PodTemplateSpec.
ELASTIC = {
    "maxReplicas": int, "maxRestarts": int, "metrics": list, "minReplicas": int, "nProcPerNode": int,
    "rdzvBackend": str, "rdzvConf": list, "rdzvHost": str, "rdzvId": str, "rdzvPort": int, "standalone": bool,
}  # fmt: skip
RUN_POLICY = {
    "activeDeadlineSeconds": int, "backoffLimit": int, "cleanPodPolicy": str, "schedulingPolicy": dict,
    "ttlSecondsAfterFinished": int,
}  # fmt: skip
REPLICA = {"replicas": int, "restartPolicy": str, "template": dict}
CONTAINER = {
    "name": str, "image": str, "workingDir": str, "command": list, "env": list, "lifecycle": dict, "resources": dict,
    "volumeMounts": list,
}  # fmt: skip


def assert_fields(mapping: dict[str, Any], fields: dict[str, type]) -> None:
    for name, value in mapping.items():
        assert name in fields, f"{name} is not a field"
        assert type(value) is fields[name], f"{name}: {value!r}"


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return yaml.safe_load(MANIFEST.read_text())


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    (only,) = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    return only


def test_the_manifest_is_a_pytorchjob(manifest: dict[str, Any]) -> None:
    assert (manifest["apiVersion"], manifest["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", manifest["metadata"]["name"])
    spec = manifest["spec"]
    assert set(spec) == {"elasticPolicy", "runPolicy", "pytorchReplicaSpecs"}
    assert_fields(spec["elasticPolicy"], ELASTIC)
    assert_fields(spec["runPolicy"], RUN_POLICY)
    assert list(spec["pytorchReplicaSpecs"]) == ["Worker"]
    worker = spec["pytorchReplicaSpecs"]["Worker"]
    assert_fields(worker, REPLICA)
    assert_fields(container(manifest), CONTAINER)
    assert container(manifest)["name"] == "pytorch"
    assert spec["elasticPolicy"]["minReplicas"] <= worker["replicas"] <= spec["elasticPolicy"]["maxReplicas"]
    assert worker["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
    assert spec["runPolicy"]["cleanPodPolicy"] in ("Running", "All", "None")
    assert all(set(entry) == {"key", "value"} for entry in spec["elasticPolicy"]["rdzvConf"])
    assert all(isinstance(value, str) for entry in container(manifest)["env"] if (value := entry.get("value")))


def test_what_the_manifest_mounts_is_what_the_run_uses(manifest: dict[str, Any]) -> None:
    pod = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container(manifest)["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert mounts["shm"] == "/dev/shm"
    assert run_config(container(manifest)["command"]).run.dir.startswith(mounts["shared"] + "/")


def run_config(command: list[str]) -> RunConfig:
    """What a command line of torchrun's means to tools/pretrain.py."""
    tool = command.index("tools/pretrain.py")
    assert (ROOT / command[tool]).exists()
    return parse_arguments(
        RunConfig, "", [option.replace("=configs/", f"={ROOT}/configs/") for option in command[tool + 1 :]]
    )


def torchrun_options(command: list[str]) -> Any:
    from torch.distributed.run import get_args_parser

    assert command[0] == "torchrun"
    return get_args_parser().parse_args(command[1:])


def test_the_manifest_starts_a_run_that_fits(manifest: dict[str, Any]) -> None:
    command = container(manifest)["command"]
    processes = int(torchrun_options(command).nproc_per_node)
    assert processes == container(manifest)["resources"]["limits"]["nvidia.com/gpu"]
    config = run_config(command)
    policy = manifest["spec"]["elasticPolicy"]
    for nodes in range(policy["minReplicas"], policy["maxReplicas"] + 1):
        config.validate(world_size=nodes * processes)


@pytest.mark.parametrize("path", [*SCRIPTS, MANIFEST, ROOT / "README.md", ROOT / "docs" / "cluster.md"])
def test_options_named_in_scripts_and_documents_exist(path: Path) -> None:
    """Dotted options of tools/pretrain.py, wherever they stand; a renamed key is found here."""
    config = str(ROOT / "configs" / "demo.yaml")
    for option in sorted(set(re.findall(r"--([a-z]+\.[a-z_.]+[a-z])", path.read_text()))):
        message = ""
        try:
            parse_arguments(RunConfig, "", ["--config", config, f"--{option}", "nonsense"])
        except ConfigError as error:
            message = str(error)
        assert "unknown key" not in message, path.name


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], capture_output=True, check=True).stderr == b""
    assert os.access(script, os.X_OK)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)
    text = script.read_text().replace("\\\n", " ")
    (command,) = re.findall(r"torchrun\s+--nnodes.*tools/pretrain\.py", text)
    words = shlex.split(re.sub(r"\$\(\([^)]*\)\)|\$\{?[\w:,-]+\}?", "1", command))
    options = torchrun_options(words)
    assert options.rdzv_backend == "c10d"
    assert options.training_script == "tools/pretrain.py"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_without_arguments_they_say_what_they_need(script: Path) -> None:
    done = subprocess.run([script], capture_output=True, text=True, env={**os.environ, "SLURM_JOB_ID": "1"})
    assert done.returncode != 0
    assert "--config" in done.stderr


SRUN = """#!/usr/bin/env bash
# Two tasks of a step, as on two nodes; signals go to all tasks and what they started in their process group.
set -m
shift # --kill-on-bad-exit
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" & second=$!
trap 'kill -USR1 -- -$first -$second' USR1
code=0
for task in $first $second; do
  while kill -0 $task 2>/dev/null; do wait $task && status=0 || status=$?; done
  [ "$status" = 0 ] || code=$status
done
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo localhost; else echo "$@" >> "$REQUEUED"; fi
"""


def slurm(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    """The script of a job on two nodes."""
    tools = tmp_path / "slurm"
    tools.mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    variables = {
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NNODES": "2",
        "PROCESSES": "1",
        "MAX_RESTARTS": "0",
        "REQUEUED": str(tmp_path / "requeued"),
    }
    return subprocess.Popen(
        [CLUSTER / "slurm.sh", "--config", str(tmp_path / "config.yaml"), *options],
        env=environment() | variables,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_slurm_asks_to_stop_and_the_job_is_queued_again(tmp_path: Path) -> None:
    write_config(tmp_path, train__steps=300, train__eval_every=0, train__eval_tokens=32)
    job = slurm(tmp_path)
    deadline = time.monotonic() + 90
    while not (tmp_path / "run" / "metrics.jsonl").exists() or records(tmp_path / "run")[-1]["step"] < 3:
        assert time.monotonic() < deadline
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    output, errors = job.communicate(timeout=90)
    assert job.returncode == 0, errors
    assert "Traceback" not in errors
    stopped_at = records(tmp_path / "run")[-1]["step"]
    assert 3 <= stopped_at < 300
    assert (tmp_path / "run" / "checkpoints" / f"step_{stopped_at:08}").exists(), output
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"

    last = str(stopped_at + 5)
    again = slurm(tmp_path, "--train.stop_after", last)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert (tmp_path / "requeued").read_text().count("\n") == 1, "a job that ends by itself is done"
    train_here(tmp_path / "config.yaml", "--run.dir", str(tmp_path / "alone"), "--train.stop_after", last)
    for ours, alone in zip(losses(tmp_path / "run"), losses(tmp_path / "alone"), strict=True):
        assert ours == pytest.approx(alone, rel=1e-6, abs=1e-6)


@pytest.mark.slow
def test_a_mistake_under_slurm_is_one_line_and_fails_the_job(tmp_path: Path) -> None:
    write_config(tmp_path)
    job = slurm(tmp_path, "--train.stepz", "5")
    _, errors = job.communicate(timeout=120)
    assert job.returncode != 0
    assert [line for line in errors.splitlines() if line.startswith("error:")] == [
        "error: command line: unknown key train.stepz; did you mean train.steps?"
    ]
    assert not (tmp_path / "requeued").exists()
