"""The plan beside reality: memory that two processes allocated, and runs that others have published."""

from benchmarks.plan_anchors import measure
from benchmarks.plan_run_memory import CASES, rows_of


def test_memory_is_within_five_percent_of_two_real_ranks():
    name = "bf16, 4 x 256 tokens"
    rows = rows_of(name, CASES[name])
    assert len(rows) == 4
    assert all(row["holds"] for row in rows), rows


def test_published_runs_are_met_within_a_third_and_collectives_within_an_eighth():
    rows = {row["name"]: row for row in measure()}
    assert all(0.7 < row["ratio"] < 1.34 for row in rows.values()), rows
    assert all(0.87 < row["ratio"] < 1.13 for name, row in rows.items() if "reduce-scatter" in name)
    # What was not overlapped falls apart on 64 nodes, in the model as it did in fact.
    fallen = rows["nanotron 3.57B, 512 H100, not overlapped"]["ours"]
    assert fallen * 23.5e9 / 989e12 < 0.15
