"""Whole arenas, by the tool and in this process, judged by real servers: fair, biased, talking nonsense, silent."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mindllm_engine.chat_endpoint import EndpointConfig
from mindllm_engine.command_line import parse_arguments
from mindllm_engine.errors import ConfigError, DataError, MindLLMError
from mindllm_engine.evaluation.arena.answers import Contestant
from mindllm_engine.evaluation.arena.arena import ArenaConfig, run_arena
from tests.chat_server import ChatServer, Reply
from tests.evaluation.arena.tuned_run import tuned_run
from tests.training.tiny_run import ROOT, environment

STRENGTHS = {"good": 1.0, "fair": 0.0, "same": 0.0, "poor": -1.2}


def shown_answers(request: dict[str, Any]) -> list[str]:
    """By place."""
    return re.findall(r"\[(?:Answer|回答) [A-Z]\]\n(.*)", request["messages"][1]["content"])


def noisy_judge(request: dict[str, Any], by_place: float = 0.0) -> str:
    """Ranks by the strength that an answer names, with noise that belongs to the question (Plackett-Luce), and a
    bonus for each place nearer to the front."""
    answers = shown_answers(request)
    question = int(re.findall(r"question (\d+)", request["messages"][1]["content"])[0])
    utilities = []
    for place, answer in enumerate(answers):
        name = answer.split()[-1]
        noise = np.random.default_rng([question, sorted(STRENGTHS).index(name)]).gumbel()
        utilities.append(STRENGTHS[name] + noise - by_place * place)
    order = np.argsort(-np.array(utilities))
    return "Because.\n**排名：" + " > ".join("ABCDEFG"[place] for place in order) + "**"


def arena(folder: Path, judge_url: str, prompts: int = 60, **options: Any) -> ArenaConfig:
    """Four models whose answers lie in files and name their model."""
    folder.mkdir(exist_ok=True, parents=True)
    questions = [json.dumps({"id": f"q{number}", "query": f"question {number}"}) for number in range(prompts)]
    (folder / "prompts.jsonl").write_text("\n".join(questions))
    contestants = {}
    for name in STRENGTHS:
        lines = [json.dumps({"id": f"q{number}", "answer": f"answer of {name}"}) for number in range(prompts)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
        contestants[name] = Contestant(answers=str(folder / f"{name}.jsonl"))
    judge = EndpointConfig(judge_url, "judge", retries=0, timeout_seconds=5.0)
    defaults = {"prompts": str(folder / "prompts.jsonl"), "output": str(folder / "out"), "replicates": 300}
    return ArenaConfig(**{"contestants": contestants, "judge": judge, **defaults, **options})


def test_a_fair_judge(tmp_path: Path) -> None:
    with ChatServer(noisy_judge) as server:
        results = run_arena(arena(tmp_path, server.url, prompts=120))
        sent = len(server.requests)
        again = run_arena(arena(tmp_path, server.url, prompts=120))
    assert sent == len(server.requests) == 240  # the second arena is answered by the cache
    assert again == results
    ratings = {row["name"]: row for row in results["ratings"]}
    truth = {name: 1500 + 400 / np.log(10) * (value + 0.05) for name, value in STRENGTHS.items()}
    for name, row in ratings.items():
        low, high = row["interval"]
        assert low - 40 < truth[name] < high + 40
        assert low <= row["bradley_terry"] <= high
    assert [row["name"] for row in results["ratings"]][::3] == ["good", "poor"]
    assert [sorted(group) for group in results["groups"]] == [["good"], ["fair", "same"], ["poor"]]
    assert not any(place["biased"] for place in results["places"])
    assert results["rotations"] == {"pairs": 720, "same": 1.0, "opposite": 0.0, "tie_in_one": 0.0}
    assert results["judgements"] == {"asked": 240, "ranked": 240, "failed": 0, "asked_again": 0, "failures": {}}
    assert results["warnings"] == []
    assert all(50 < row["elo_sd"] < 120 for row in results["ratings"])

    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["ratings"] == results["ratings"]
    table = (tmp_path / "out" / "ratings.md").read_text()
    assert "| good |" in table
    assert "Cannot be told apart: " in table
    assert (tmp_path / "out" / "arena.png").read_bytes().startswith(b"\x89PNG")
    judgements = [json.loads(line) for line in (tmp_path / "out" / "judgements.jsonl").read_text().splitlines()]
    assert len(judgements) == 240
    assert set(judgements[0]["ranks"]) == set(STRENGTHS)


def test_a_judge_biased_by_place_is_found_out(tmp_path: Path) -> None:
    with ChatServer(lambda request: noisy_judge(request, by_place=0.5)) as server:
        results = run_arena(arena(tmp_path, server.url, prompts=100))
    rates = [place["win_rate"] for place in results["places"]]
    assert rates == sorted(rates, reverse=True)
    assert results["places"][0]["biased"]
    assert results["places"][-1]["biased"]
    assert results["places"][0]["interval"][0] > 0.5
    assert results["rotations"]["opposite"] > 0.05
    assert "| 1 |" in (tmp_path / "out" / "ratings.md").read_text()
    # Rotation takes the bias off the ratings: what is equal stays so.
    assert ["fair", "same"] in [sorted(group) for group in results["groups"]]


def test_a_judge_that_sees_places_only_finds_all_models_equal(tmp_path: Path) -> None:
    with ChatServer(lambda request: "A > B > C > D") as server:
        results = run_arena(arena(tmp_path, server.url, prompts=40))
    assert [row["bradley_terry"] for row in results["ratings"]] == pytest.approx([1500] * 4)
    assert [place["win_rate"] for place in results["places"]] == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert [place["biased"] for place in results["places"]] == [True] * 4


def test_ties_and_a_model_that_wins_all(tmp_path: Path) -> None:
    def good_first(request: dict[str, Any]) -> str:
        answers = shown_answers(request)
        best = answers.index("answer of good")
        rest = [letter for place, letter in enumerate("ABCD") if place != best]
        return f"排名：{'ABCD'[best]} > {' = '.join(rest)}"

    with ChatServer(good_first) as server:
        results = run_arena(arena(tmp_path, server.url, prompts=24))
    assert results["ratings"][0]["name"] == "good"
    assert results["no_finite_maximum"]
    assert any("never lost" in warning for warning in results["warnings"])
    assert [row["bradley_terry"] for row in results["ratings"][1:]] == pytest.approx(
        [results["ratings"][1]["bradley_terry"]] * 3
    )
    assert sorted(results["groups"][1]) == ["fair", "poor", "same"]


def test_nonsense_now_and_then_is_counted(tmp_path: Path) -> None:
    def sometimes(request: dict[str, Any]) -> str | Reply:
        question = int(re.findall(r"question (\d+)", request["messages"][1]["content"])[0])
        if question % 10 == 3:
            return "一言难尽"
        return Reply(500, b"down") if question % 10 == 7 else noisy_judge(request)

    with ChatServer(sometimes) as server:
        results = run_arena(arena(tmp_path, server.url, prompts=40))
    judged = results["judgements"]
    assert (judged["asked"], judged["ranked"], judged["failed"], judged["asked_again"]) == (80, 64, 16, 8)
    assert judged["failures"] == {"the reply holds no ranking": 8, "no reply: 500: down": 8}
    assert results["prompts_ranked"] == 32
    assert any("16 of 80 judgements failed" in warning for warning in results["warnings"])
    lines = [json.loads(line) for line in (tmp_path / "out" / "judgements.jsonl").read_text().splitlines()]
    assert [line["reply"] for line in lines if line["failure"] == "the reply holds no ranking"] == ["一言难尽"] * 8


def test_a_judge_of_nonsense_alone_gives_a_count(tmp_path: Path) -> None:
    with ChatServer(lambda request: "诗") as server, pytest.raises(DataError) as caught:
        run_arena(arena(tmp_path, server.url, prompts=5))
    assert "the judge ranked nothing in 10 judgements: 10 times: the reply holds no ranking" in str(caught.value)
    assert "judgements.jsonl" in str(caught.value)
    assert (tmp_path / "out" / "judgements.jsonl").read_text().count("诗") == 10
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_judge_that_times_out_gives_a_count(tmp_path: Path) -> None:
    clear = pytest.raises(DataError, match=r"nothing in 6 judgements: 6 times: no reply: no answer within 0\.3 s")
    with ChatServer(lambda request: Reply(200, b"", seconds_before=2)) as server:
        judge = EndpointConfig(server.url, "judge", retries=0, timeout_seconds=0.3)
        config = arena(tmp_path, server.url, prompts=3, judge=judge)
        with clear:
            run_arena(config)


def test_prompts_that_a_model_did_not_answer_are_left_out_and_said(tmp_path: Path) -> None:
    with ChatServer(noisy_judge) as server:
        config = arena(tmp_path, server.url, prompts=30)
        lines = [{"id": f"q{n}", "answer": None if n < 5 else "answer of fair"} for n in range(30)]
        (tmp_path / "fair.jsonl").write_text("\n".join(map(json.dumps, lines)))
        (tmp_path / "prompts.jsonl").open("a").write("\nnonsense\n")
        results = run_arena(config)
        assert results["prompts"] == {"read": 30, "bad": 1, "judged": 25}
        assert any("5 prompts left out" in warning and "fair 5 times" in warning for warning in results["warnings"])
        assert any("prompts.jsonl:31" in warning for warning in results["warnings"])
        (tmp_path / "fair.jsonl").write_text("\n".join(json.dumps({"id": f"q{n}", "answer": None}) for n in range(30)))
        with pytest.raises(DataError, match="no prompt was answered by all models; fair 30 times"):
            run_arena(config)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"contestants": {"one": Contestant(answers="a")}}, "2 to 26 models, not 1"),
        ({"contestants": {"a/b": Contestant(answers="a"), "b": Contestant(answers="a")}}, "letters, digits"),
        ({"contestants": {"a": Contestant(answers="a"), "b": Contestant()}}, r"contestants\.b: give one"),
        ({"rotations": 5}, "rotations must be 1 to the number of models, 4"),
        ({"rotations": 0}, "rotations"),
        ({"limit": 0}, "limit"),
        ({"replicates": 5}, "replicates"),
        ({"judge": EndpointConfig("nowhere", "m")}, "url"),
        ({"criteria": "missing.txt"}, "cannot be read"),
    ],
)
def test_configs_that_cannot_be_used(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        run_arena(arena(tmp_path, "http://127.0.0.1:9/v1", **options))
    assert not (tmp_path / "out").exists()


def test_no_judge_there(tmp_path: Path) -> None:
    with pytest.raises(MindLLMError, match="no server answers"):
        run_arena(arena(tmp_path, "http://127.0.0.1:9/v1", prompts=3))


def test_the_tool_with_a_run_folder_a_server_and_a_file(tmp_path: Path) -> None:
    """From a network's weights to a table, with criteria of one's own; a second call asks nothing."""
    run = tuned_run(tmp_path / "tuned")
    laws = [
        {
            "id": f"q{n}",
            "query": "a",
            "laws": ["第一条"],
            "history": ["[客户] a", "[律师] 嗯", f"[客户] {n}", "[律师] b"],
        }
        for n in range(6)
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, laws)))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"id": f"q{n}", "answer": "文件"}) for n in range(6)))
    (tmp_path / "criteria.txt").write_text("越短越好。")

    def answer_or_judge(request: dict[str, Any]) -> str:
        if request["model"] == "peer":
            return "服务器的回答"
        assert request["messages"][0]["content"].startswith("越短越好。")
        answers = shown_answers(request)
        order = sorted(range(3), key=lambda place: len(answers[place]))
        return "Ranking: " + " > ".join("ABC"[place] for place in order)

    with ChatServer(answer_or_judge) as server:
        endpoint = {"url": server.url, "retries": 0}
        config = {
            "prompts": str(tmp_path / "p.jsonl"),
            "output": str(tmp_path / "out"),
            "contestants": {
                "ours": {"run": str(run)},
                "peer": {"endpoint": endpoint | {"model": "peer", "cache": str(tmp_path / "peer.jsonl")}},
                "file": {"answers": str(tmp_path / "a.jsonl")},
            },
            "judge": endpoint | {"model": "judge"},
            "answering": {"max_new_tokens": 40},
            "criteria": str(tmp_path / "criteria.txt"),
        }
        (tmp_path / "arena.yaml").write_text(yaml.safe_dump(config))
        options = ["--config", str(tmp_path / "arena.yaml")]
        command = [sys.executable, str(ROOT / "tools" / "arena.py"), *options]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert len(server.requests) == 6 + 12
        table = (tmp_path / "out" / "ratings.md").read_text()
        assert done.stdout == table
        assert "| file |" in table
        run_arena(parse_arguments(ArenaConfig, "", options))
        assert len(server.requests) == 6 + 12
        assert (tmp_path / "out" / "ratings.md").read_text() == table
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers" / "ours.jsonl").read_text().splitlines()]
    assert [set(line) for line in answers] == [{"id", "answer"}] * 6


def test_the_committed_config_can_be_used() -> None:
    config = parse_arguments(ArenaConfig, "", ["--config", str(ROOT / "configs" / "arena" / "law.yaml")])
    config.validate()
    assert set(config.contestants) == {"tuned", "base", "peer"}


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="rotations"):
        parse_arguments(ArenaConfig, "", ["--config", str(ROOT / "configs" / "arena" / "law.yaml"), "--rotation", "2"])
