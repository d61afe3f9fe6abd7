"""Trials: what their names, folders and identities depend on, and grids that are refused."""

from pathlib import Path
from typing import Any

import pytest

from mindllm_engine.command_line import merge_mappings, parse_mapping, read_yaml
from mindllm_engine.errors import ConfigError
from mindllm_engine.studies.memory import machine_bytes, too_large, trial_bytes
from mindllm_engine.studies.trials import PlannedTrial, Trial, changed, named, plan_trials
from mindllm_engine.studies.worker import tasks_of
from mindllm_engine.training.config import RunConfig
from tests.studies.toy_study import write_base


@pytest.fixture
def base(tmp_path: Path) -> dict[str, Any]:
    return read_yaml(write_base(tmp_path))


def plan(base: dict[str, Any], *trials: Trial, folder: str = "grid") -> list[PlannedTrial]:
    return plan_trials(list(trials), base, Path(folder))


def test_changes_reach_nested_keys_and_leave_the_base_alone() -> None:
    base = {"optim": {"lr": 1.0, "schedule": {"kind": "linear"}}, "data": {"blocks": [{"order": "shuffled"}]}}
    result = changed(base, {"optim.lr": 2.0, "optim.schedule.kind": "wsd", "data.blocks": [], "train.steps": 3})
    assert result == {
        "optim": {"lr": 2.0, "schedule": {"kind": "wsd"}},
        "data": {"blocks": []},
        "train": {"steps": 3},
    }
    assert base["optim"]["lr"] == 1.0


def test_a_change_is_a_copy() -> None:
    blocks: list[dict[str, Any]] = [{}]
    result = changed({}, {"data.blocks": blocks})
    blocks[0]["order"] = "blocked"
    assert result == {"data": {"blocks": [{}]}}


def test_names_show_settings() -> None:
    assert named(width=128, lr=1e-3, kind="wsd", seed=2) == "width128_lr0.001_kindwsd_seed2"


def test_the_folder_follows_from_what_decides_the_result(base: dict[str, Any]) -> None:
    (one,) = plan(base, Trial("a", {"optim.lr": 1e-3}, {}))
    (again,) = plan(base, Trial("a", {"optim.lr": 1e-3}, {"other": "labels"}), folder="elsewhere")
    (kept,) = plan(base, Trial("a", {"optim.lr": 1e-3, "train.checkpoint_every": 2, "train.log_every": 3}, {}))
    (other,) = plan(base, Trial("a", {"optim.lr": 2e-3}, {}))
    assert one.identity == again.identity == kept.identity != other.identity
    assert one.folder == Path("grid") / f"a-{one.identity[:8]}"
    assert one.config.run.dir == str(one.folder)


def test_a_branch_is_another_trial_where_its_origin_is(base: dict[str, Any]) -> None:
    def branch(step: int, rate: float) -> str:
        parent = Trial("parent", {"optim.lr": rate}, {})
        return plan(base, parent, Trial("branch", {}, {}, continues=("parent", step)))[1].identity

    assert len({branch(2, 1e-3), branch(3, 1e-3), branch(2, 2e-3)}) == 3
    assert branch(2, 1e-3) == branch(2, 1e-3)


def test_weights_of_another_trial_are_the_initial_ones(base: dict[str, Any]) -> None:
    first, second = plan(base, Trial("first", {}, {}), Trial("second", {}, {}, starts_from="first"))
    assert second.config.run.init_from == str(first.folder)
    assert second.parent is first


def test_sizes_and_steps(base: dict[str, Any]) -> None:
    parent, branch = plan(
        base,
        Trial("parent", {"train.steps": 10, "train.stop_after": 4}, {}),
        Trial("branch", {"train.steps": 9}, {}, continues=("parent", 4)),
    )
    assert (parent.last_step, branch.first_step, branch.last_step) == (4, 4, 9)
    assert branch.flops / parent.flops == 5 / 4
    assert parent.parameters == 300 * 16 + 32 * 16 + 4 * 16 * 16 + 2 * 32 * 16 + 16 * 5 + 16 + 32 + 2 * 16


def test_workers_take_what_much_hangs_on_first(base: dict[str, Any]) -> None:
    planned = plan(
        base,
        Trial("short", {"train.steps": 2}, {}),
        Trial("stem", {"train.steps": 1}, {}),
        Trial("long", {"train.steps": 8}, {}),
        Trial("branch", {"train.steps": 12}, {}, continues=("stem", 1)),
    )
    assert [task.name for task in tasks_of(planned)] == ["stem", "branch", "long", "short"]


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        ([Trial("a", {}, {}), Trial("a", {}, {})], "trial a: two trials have this name"),
        (
            [Trial("a", {}, {}, starts_from="b"), Trial("b", {}, {})],
            "trial a: it needs b, which does not come before it",
        ),
        ([Trial("a", {"optim.learning": 1}, {})], "trial a: unknown key optim.learning"),
        ([Trial("a", {"optim.lr": "fast"}, {})], "trial a: optim.lr"),
        ([Trial("a", {"optim.lr": -1.0}, {})], "trial a: optim.lr: -1.0 must be"),
        ([Trial("a", {"train.micro_batch_size": 3}, {})], "trial a: train.global_batch_size: 4 is not a multiple"),
    ],
)
def test_grids_that_are_refused(base: dict[str, Any], trials: list[Trial], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(base, *trials)


def test_memory_grows_with_the_network_and_a_large_one_is_left_out_with_its_size(base: dict[str, Any]) -> None:
    wide = {"model.gpt_neo.hidden_size": 4096, "model.gpt_neo.ffn_size": 16384, "model.gpt_neo.n_layers": 24}
    small, large = plan(base, Trial("small", {}, {}), Trial("large", wide, {}))
    # 24 x 12 h^2 parameters in fp32: weight, gradient, master, two moments.
    assert trial_bytes(large) > 24 * 12 * 4096**2 * 20
    assert trial_bytes(small) < 1e9
    assert too_large(small, 8e9, 2) is None
    reason = too_large(large, 8e9, 2)
    assert reason is not None
    assert "4,834 M parameters" in reason
    assert too_large(small, machine_bytes(), 1) is None


def test_a_mapping_parses_to_the_config_that_it_was_made_of(base: dict[str, Any]) -> None:
    (trial,) = plan(base, Trial("a", {}, {}))
    from dataclasses import asdict

    assert parse_mapping(RunConfig, asdict(trial.config), "it") == trial.config


def test_a_mapping_with_a_wrong_key_is_refused_by_name(base: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"it: unknown key train\.step; did you mean train\.steps\?"):
        parse_mapping(RunConfig, changed(base, {"train.step": 3}), "it")
    del base["model"]
    with pytest.raises(ConfigError, match="it: missing key model"):
        parse_mapping(RunConfig, base, "it")


def test_merged_mappings() -> None:
    assert merge_mappings({"a": {"b": 1, "c": 2}, "d": 1}, {"a": {"c": 3}, "e": {}}) == {
        "a": {"b": 1, "c": 3},
        "d": 1,
        "e": {},
    }
    assert merge_mappings({"a": {"b": 1}}, {"a": None}) == {"a": None}
