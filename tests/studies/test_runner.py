"""Studies as users run them: processes killed and stopped, grids that grow, calls side by side, ranks of torchrun, and
trials that go wrong. What was trained is told by the runs' own records."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from mindllm_engine.errors import DataError, MindLLMError
from mindllm_engine.studies.results import Result, refuse_mixed_text
from mindllm_engine.studies.worker import OUTCOME_FILE, link_checkpoint
from mindllm_engine.training.metrics import read_metrics
from tests.studies.toy_study import write_base, write_study, write_text

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.studies.toy_study", "--config"]


def start(config: Path, *, ranks: int = 1) -> "subprocess.Popen[str]":
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    command = COMMAND if ranks == 1 else [*launcher, "tests.studies.toy_study", "--config"]
    return subprocess.Popen(
        [*command, str(config)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: "subprocess.Popen[str]", code: int = 0) -> str:
    output, _ = process.communicate(timeout=250)
    assert process.returncode == code, output
    return output


def run(config: Path, code: int = 0, ranks: int = 1) -> str:
    return finish(start(config, ranks=ranks), code)


def trial_folders(folder: Path) -> dict[str, Path]:
    """Name -> folder of each trial that has been begun."""
    return {path.name.rsplit("-", 1)[0]: path for path in (folder / "study" / "trials").iterdir()}


def trained_steps(trial: Path) -> list[int]:
    """Every step that a run has reported, in order; a step done twice would stand twice."""
    return [record["step"] for record in read_metrics(trial) if "loss" in record]


def endings(folder: Path) -> dict[str, int]:
    """When each trial ended, in nanoseconds: unchanged where nothing was trained again."""
    return {name: (path / OUTCOME_FILE).stat().st_mtime_ns for name, path in trial_folders(folder).items()}


def findings(folder: Path) -> dict[str, Any]:
    return dict(orjson.loads((folder / "study" / "findings.json").read_bytes()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two rates, two seeds and a branch, run to its end."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_study(folder, write_base(folder), rates=[1e-3, 1e-2], branch_at=6)
    output = run(config)
    assert output.count("trial 5/5") == 1
    return folder


def test_every_trial_is_trained_and_analysed(finished: Path) -> None:
    folders = trial_folders(finished)
    assert len(folders) == 5
    assert trained_steps(folders["width16_lr0.01_seed2"]) == [1, 2, 3, 4, 5, 6]
    found = findings(finished)
    assert found["claims"][0]["verdict"] in ("confirmed", "not decidable")
    assert found["cost"]["trials"] == 5
    assert found["cost"]["tokens"] == (4 * 6 + 2) * 4 * 32
    assert (finished / "study" / "report.html").exists()


def test_a_branch_trains_only_its_own_steps_and_shares_its_parents_files(finished: Path) -> None:
    folders = trial_folders(finished)
    assert trained_steps(folders["branch"]) == [7, 8]
    shared = "checkpoints/step_00000006/state.json"
    assert (folders["branch"] / shared).samefile(folders["width16_lr0.001_seed1"] / shared)


def test_a_finished_study_trains_nothing_again(finished: Path) -> None:
    before = endings(finished)
    assert "trial " not in run(finished / "study.yaml")
    assert endings(finished) == before


def test_a_grown_grid_trains_only_what_is_new(finished: Path) -> None:
    before = endings(finished)
    config = yaml.safe_load((finished / "study.yaml").read_text())
    config["rates"]["rates"].append(3e-3)
    config["study"]["seeds"].append(3)
    (finished / "grown.yaml").write_text(yaml.safe_dump(config))
    run(finished / "grown.yaml")
    after = endings(finished)
    assert {name: after[name] for name in before} == before
    new = {"width16_lr0.003_seed1", "width16_lr0.003_seed2", "width16_lr0.003_seed3"}
    assert after.keys() - before.keys() == new | {"width16_lr0.001_seed3", "width16_lr0.01_seed3"}


def wait_until(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def begun(folder: Path, count: int) -> bool:
    trials = folder / "study" / "trials"
    return trials.exists() and sum((path / "metrics.jsonl").exists() for path in trials.iterdir()) >= count


def ended(folder: Path, count: int) -> bool:
    return begun(folder, 0) and sum((path / OUTCOME_FILE).exists() for path in trial_folders(folder).values()) >= count


def test_a_killed_study_goes_on_where_it_was(tmp_path: Path) -> None:
    config = write_study(tmp_path, write_base(tmp_path, steps=40, checkpoint_every=5), workers=1)
    process = start(config)
    wait_until(lambda: ended(tmp_path, 1) and begun(tmp_path, 2))
    process.kill()  # its worker sees that it is alone, saves and ends
    process.wait()
    before = {name: (path / OUTCOME_FILE).exists() for name, path in trial_folders(tmp_path).items()}
    done = {name: mtime for name, mtime in ((name, endings_of(tmp_path, name)) for name in before) if mtime}
    run(config)
    assert done
    assert {name: endings_of(tmp_path, name) for name in done} == done
    for path in trial_folders(tmp_path).values():
        assert trained_steps(path) == list(range(1, 41))


def endings_of(folder: Path, name: str) -> int | None:
    path = trial_folders(folder)[name] / OUTCOME_FILE
    return path.stat().st_mtime_ns if path.exists() else None


def test_a_stopped_study_says_so_and_goes_on_from_its_last_step(tmp_path: Path) -> None:
    config = write_study(tmp_path, write_base(tmp_path, steps=60), seeds=(1,), workers=2)
    process = start(config)
    wait_until(lambda: begun(tmp_path, 2))
    process.send_signal(signal.SIGTERM)
    output = finish(process, code=2)
    assert "stopped before all trials had ended; the same command goes on from there" in output
    saved = {name: trained_steps(path) for name, path in trial_folders(tmp_path).items()}
    assert any(0 < len(steps) < 60 for steps in saved.values())
    assert "goes on from step" in run(config) + "".join(
        (path / "log.txt").read_text() for path in trial_folders(tmp_path).values()
    )
    for path in trial_folders(tmp_path).values():
        assert trained_steps(path) == list(range(1, 61))


def test_two_calls_share_the_trials(tmp_path: Path) -> None:
    config = write_study(tmp_path, write_base(tmp_path, steps=20), seeds=(1, 2, 3), workers=1)
    calls = [start(config), start(config)]
    outputs = [finish(call) for call in calls]
    assert all("trial 6/6" in output for output in outputs)
    for path in trial_folders(tmp_path).values():
        assert trained_steps(path) == list(range(1, 21))
        assert (path / "log.txt").read_text().count("step 0:") == 1


HOST = ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "sh", "-c", 'hostname "$0" && "$@"; exit $?']
CAN_BE_HOSTS = subprocess.run([*HOST, "node", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not CAN_BE_HOSTS, reason="makes host names and process numbers of its own, which needs root")
def test_hosts_of_an_array_share_the_trials_though_their_processes_have_the_same_numbers(tmp_path: Path) -> None:
    """As the tasks of a Slurm array on three nodes; a process killed on the first concerns its trial alone."""
    config = write_study(tmp_path, write_base(tmp_path, steps=300), seeds=(1, 2, 3), workers=1)
    calls = [
        subprocess.Popen(
            [*HOST, f"node{number}", *COMMAND, str(config)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(3)
    ]
    wait_until(lambda: begun(tmp_path, 3))
    by_host = {path.joinpath(".training").read_text().split(":")[0]: path for path in trial_folders(tmp_path).values()}
    assert by_host.keys() == {"node0", "node1", "node2"}
    os.kill(worker_below(calls[0].pid), signal.SIGKILL)
    outputs = [finish(call, code=2) for call in calls]
    assert f"{by_host['node0'].name.rsplit('-', 1)[0]}: the process that trained it was killed by SIGKILL" in outputs[0]
    endings_before = endings(tmp_path)
    run(config)
    again = {name for name, ending in endings(tmp_path).items() if ending != endings_before.get(name)}
    assert again <= {by_host["node0"].name.rsplit("-", 1)[0]}
    for path in trial_folders(tmp_path).values():
        assert trained_steps(path) == list(range(1, 301))


def worker_below(process: int) -> int:
    """The number, in this test's own namespace, of the process that trains below a call."""
    below = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    for child in map(int, below):
        if b"mindllm_engine.studies.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
            return child
        if found := worker_below(child):
            return found
    return 0


def test_ranks_of_torchrun_train_each_trial_together(tmp_path: Path) -> None:
    run(write_study(tmp_path, write_base(tmp_path), branch_at=6, rates=[1e-3, 1e-2]), ranks=2)
    for name, path in trial_folders(tmp_path).items():
        assert trained_steps(path) == ([7, 8] if name == "branch" else [1, 2, 3, 4, 5, 6])
        checkpoint = max((path / "checkpoints").iterdir())
        assert orjson.loads((checkpoint / "state.json").read_bytes())["world_size"] == 2
    assert findings(tmp_path)["cost"]["trials"] == 5


def test_a_diverged_trial_is_left_out_with_its_reason_and_not_tried_again(tmp_path: Path) -> None:
    base = write_base(tmp_path)
    config = write_study(tmp_path, base, rates=[1e-3, 1e-2, 1e30])
    run(config)
    left_out = {entry["name"]: entry["reason"] for entry in findings(tmp_path)["left_out"]}
    assert left_out.keys() == {"width16_lr1e+30_seed1", "width16_lr1e+30_seed2"}
    assert all("diverged" in reason for reason in left_out.values())
    before = endings(tmp_path)
    run(config)
    assert endings(tmp_path) == before


def test_a_network_too_large_for_memory_is_left_out_and_the_rest_is_trained(tmp_path: Path) -> None:
    config = write_study(tmp_path, write_base(tmp_path), seeds=(1,), rates=[1e-3, 1e-2], widths=[16, 65536])
    output = run(config)
    assert "left out: width65536_lr0.001_seed1:" in output
    left_out = findings(tmp_path)["left_out"]
    assert [entry["name"] for entry in left_out] == ["width65536_lr0.001_seed1", "width65536_lr0.01_seed1"]
    assert "M parameters need" in left_out[0]["reason"]
    assert len(trial_folders(tmp_path)) == 2


def test_a_killed_worker_fails_its_trial_and_the_next_call_tries_again(tmp_path: Path) -> None:
    config = write_study(tmp_path, write_base(tmp_path, steps=200), seeds=(1,), workers=1)
    process = start(config)
    wait_until(lambda: begun(tmp_path, 1))
    victim = next(path for path in trial_folders(tmp_path).values() if (path / "metrics.jsonl").exists())
    os.kill(int((victim / ".training").read_text().split(":")[1]), signal.SIGKILL)
    output = finish(process, code=2)
    assert "the process that trained it was killed by SIGKILL (out of memory? lower study.workers)" in output
    run(config)
    for path in trial_folders(tmp_path).values():
        assert trained_steps(path) == list(range(1, 201))


def test_other_text_in_the_same_folder_is_refused_in_the_comparison(tmp_path: Path) -> None:
    base = write_base(tmp_path)
    run(write_study(tmp_path, base, rates=[1e-3, 1e-2], seeds=(1,)))
    (tmp_path / "data").rename(tmp_path / "old")
    write_text(tmp_path / "text", seed=5)
    output = run(write_study(tmp_path, base, rates=[1e-3, 1e-2], seeds=(1, 2)), code=2)
    assert "differ in their" in output
    assert "losses do not compare; delete" in output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study": {"seeds": [1, 1]}}, r"study\.seeds: \[1, 1\] must be different"),
        ({"study": {"workers": 0}}, r"study\.workers: 0 must be at least 1"),
        ({"study": {"base": []}}, r"study\.base: names no config"),
        ({"study": {"base": ["none.yaml"]}}, r"none\.yaml: cannot read the config file"),
        ({"rates": None}, "exactly one experiment, not 0; give one of"),
        ({"rates": {"rate": [1]}}, r"unknown key rates\.rate; did you mean rates\.rates\?"),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    from mindllm_engine.command_line import merge_mappings, parse_arguments
    from mindllm_engine.studies.study import run_study
    from tests.studies.toy_study import ToyConfig

    config = write_study(tmp_path, tmp_path / "base.yaml")
    config.write_text(yaml.safe_dump(merge_mappings(yaml.safe_load(config.read_text()), change)))
    with pytest.raises(MindLLMError, match=message):
        run_study(parse_arguments(ToyConfig, "", ["--config", str(config)]))


def result_of(name: str, text: dict[str, str]) -> Result:
    return Result(name, {}, Path(name), None, 1, 1, [], text, 0.0)  # type: ignore[arg-type]


def test_text_that_may_be_compared() -> None:
    one, two = result_of("a", {"tokenizer": "t", "x": "1"}), result_of("b", {"tokenizer": "t", "y": "2"})
    refuse_mixed_text([one, two], "heat map", same_sources=False)
    with pytest.raises(DataError, match="fit: a and b differ in their source x"):
        refuse_mixed_text([one, two], "fit")
    other = result_of("c", {"tokenizer": "u", "x": "1"})
    with pytest.raises(DataError, match="heat map: a and c differ in their tokenizer"):
        refuse_mixed_text([one, two, other], "heat map", same_sources=False)
    changed = result_of("d", {"tokenizer": "t", "y": "3"})
    with pytest.raises(DataError, match="heat map: b and d differ in their source y"):
        refuse_mixed_text([one, two, changed], "heat map", same_sources=False)


def test_a_checkpoint_that_is_not_there_cannot_be_linked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="step_00000003: is not there; delete"):
        link_checkpoint(tmp_path / "parent", 3, tmp_path / "child")
    assert not (tmp_path / "child").exists()
