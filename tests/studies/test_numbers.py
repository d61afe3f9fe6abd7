"""Estimates from seeds against scipy, coverage by simulation, verdicts, and what findings keep through a file."""

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mindllm_engine.errors import DataError
from mindllm_engine.studies.claims import Claim, judge_above, judge_below, judge_within, not_decidable
from mindllm_engine.studies.findings import Cost, Findings, Table
from mindllm_engine.studies.pictures import heat_map, picture, smooth_mean
from mindllm_engine.studies.report import read_findings, write_findings, write_joint_page
from mindllm_engine.studies.results import LeftOut
from mindllm_engine.studies.seeds import Estimate, bootstrap_estimate, mean_estimate, paired_estimate

ROOT = Path(__file__).parents[2]


def test_a_curve_is_the_mean_of_runs_and_of_neighbours() -> None:
    first, second = {1: 1.0, 2: 2.0, 3: 3.0, 4: 10.0}, {2: 4.0, 3: 5.0, 4: 0.0, 5: 7.0}
    places, means = smooth_mean([first, second], over=2)
    assert places == [3, 4]  # those that both have are 2, 3 and 4
    assert means.tolist() == pytest.approx([3.5, 4.5])
    assert smooth_mean([first, second], over=4)[0] == smooth_mean([], over=1)[0] == []


def test_the_mean_has_students_interval() -> None:
    values = [1.0, 1.2, 1.7]
    estimate = mean_estimate(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((1.3, low, high))


def test_pairs_are_compared_seed_by_seed() -> None:
    ours, theirs = {1: 2.0, 2: 3.1, 3: 5.0, 9: 70.0}, {3: 4.0, 1: 1.1, 2: 2.0}
    low, high = stats.ttest_rel([2.0, 3.1, 5.0], [1.1, 2.0, 4.0]).confidence_interval(0.95)
    estimate = paired_estimate(ours, theirs)
    assert (estimate.low, estimate.high, estimate.count) == (pytest.approx(low), pytest.approx(high), 3)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    estimates = [mean_estimate(list(random.normal(0.3, 1, 3))) for _ in range(2000)]
    held = np.mean([estimate.low <= 0.3 <= estimate.high for estimate in estimates])
    assert held == pytest.approx(0.95, abs=0.02)


def test_one_value_has_no_interval() -> None:
    estimate = mean_estimate([2.0])
    assert not estimate.is_bounded
    assert estimate.as_json() == {"value": 2.0, "low": None, "high": None, "count": 1}
    assert estimate.text() == "2.000 (no interval)"
    assert judge_above(estimate, 0)[0] == "not decidable"


def test_the_bootstrap_leaves_out_what_is_not_finite() -> None:
    samples = [*np.linspace(0, 1, 1001), math.inf, math.nan]
    estimate = bootstrap_estimate(0.5, samples)
    assert (estimate.low, estimate.high) == (pytest.approx(0.025), pytest.approx(0.975))
    assert not bootstrap_estimate(0.5, [math.nan, 1.0]).is_bounded


@pytest.mark.parametrize(
    ("low", "high", "above", "below", "within"),
    [
        (1.1, 1.9, "confirmed", "not confirmed", "confirmed"),
        (0.1, 0.9, "not confirmed", "confirmed", "not confirmed"),
        (0.5, 1.5, "not decidable", "not decidable", "not decidable"),
        (1.5, 2.5, "confirmed", "not confirmed", "not decidable"),
        (2.5, 3.5, "confirmed", "not confirmed", "not confirmed"),
    ],
)
def test_verdicts(low: float, high: float, above: str, below: str, within: str) -> None:
    estimate = Estimate((low + high) / 2, low, high, 3)
    assert judge_above(estimate, 1)[0] == above
    assert judge_below(estimate, 1)[0] == below
    assert judge_within(estimate, 1, 2)[0] == within


def some_findings() -> Findings:
    return Findings(
        "A <study>",
        [Claim("s | t", "MindLLM 1", "1", "2", "confirmed", "because"), not_decidable("t", "u", "", "no trial")],
        [Table("Numbers", ["run", "loss"], [["a", "1.0"]], "nats")],
        [
            picture("curve", "A curve.", lambda axes: axes.plot([1, 2], [2, 1], label="a")),
            picture(
                "two",
                "Two maps.",
                lambda a, b: [heat_map(x, [[1, 2], [3, 3]], ["r", "s"], ["c", "d"]) for x in (a, b)],
                2,
            ),
        ],
        {"fit": {"alpha": 0.3, "array": [1.0, None]}},
        [LeftOut("big", "too large")],
        Cost(3, 1000, 60.0),
    )


def test_findings_come_back_from_their_files(tmp_path: Path) -> None:
    page = write_findings(some_findings(), tmp_path)
    assert read_findings(tmp_path) == some_findings()
    text = page.read_text()
    assert "A &lt;study&gt;" in text
    assert text.count("<img ") == 2
    assert all(word in text for word in ("not decidable", "too large", "3 trials, 1,000 tokens, 1.0 minutes"))
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_findings_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"findings\.json: cannot be read .*run tools/study\.py"):
        read_findings(tmp_path)
    write_findings(some_findings(), tmp_path)
    (tmp_path / "curve.png").unlink()
    with pytest.raises(DataError, match=r"curve\.png: cannot be read"):
        read_findings(tmp_path)
    (tmp_path / "findings.json").write_text("{}")
    with pytest.raises(DataError, match=r"findings\.json: is damaged"):
        read_findings(tmp_path)


def test_several_studies_on_one_page(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_findings(some_findings(), tmp_path / name)
    command = [sys.executable, "tools/report_studies.py", str(tmp_path / "one"), str(tmp_path / "two"), "--out"]
    page = tmp_path / "joint" / "report.html"
    done = subprocess.run([*command, str(page)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "not decidable" in done.stdout
    text = page.read_text()
    assert "4 claims at this scale: 2 confirmed, 2 not decidable." in text
    assert text.count("<img ") == 4
    assert (page.parent / "two" / "curve.png").exists()
    plain = page.with_suffix(".md").read_text()
    assert "4 claims at this scale: 2 confirmed, 2 not decidable." in plain
    assert all((page.parent / target).exists() for target in re.findall(r"!\[.*?\]\((.*?)\)", plain))
    rows = [line for line in plain.splitlines() if line.startswith("| ") and "**" in line]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [6] * 4
    assert read_findings(page.parent / "one") == some_findings()


def test_a_joint_page_needs_studies(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no study is named"):
        write_joint_page({}, tmp_path / "page.html")
