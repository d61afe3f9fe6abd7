"""The packing rows: that every side packs alike, and what they say where TRL is absent."""

import itertools
import sys

import pytest

from benchmarks import packing_peers
from mindllm_engine.data.packing import pack_best_fit

ROW = {"name", "unit", "ours", "peer", "peer_name", "ratio", "bar", "holds", "reason"}


@pytest.mark.parametrize(("documents", "capacity"), [(5000, 2049), (3000, 301), (0, 10), (50, 2)])
def test_plain_python_packs_as_we_do(documents: int, capacity: int) -> None:
    lengths = packing_peers.document_lengths(documents, capacity)
    ours = pack_best_fit(lengths, capacity)
    bins = [set(ours.documents[start:end].tolist()) for start, end in itertools.pairwise(ours.bin_starts)]
    theirs = [set(packed) for packed in packing_peers.python_best_fit(lengths.tolist(), capacity)]
    assert sorted(map(sorted, theirs)) == sorted(map(sorted, bins))


def test_rows_without_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl.data_utils", None)
    python, trl = packing_peers.packing_rows(documents=2000, capacity=513, repetitions=1)
    assert set(python) == set(trl) == ROW
    assert python["ratio"] == python["peer"] / python["ours"]
    assert python["holds"] is (python["ratio"] >= 20)
    assert (trl["peer"], trl["ratio"], trl["holds"], trl["bar"]) == (None, None, None, 2.0)
    assert "install the extra `bench`" in trl["reason"]


def test_a_side_that_packs_otherwise_is_refused() -> None:
    with pytest.raises(ValueError, match="theirs needs 4 bins, ours 3"):
        packing_peers.time_interleaved({"ours": lambda: 3, "theirs": lambda: 4}, repetitions=1)


def test_rows_with_trl() -> None:
    pytest.importorskip("trl")
    rows = packing_peers.packing_rows(documents=3000, capacity=2049, repetitions=1)
    assert [row["holds"] for row in rows[1:]] == [True]
    assert rows[1]["peer_name"].startswith("TRL")
    assert rows[1]["ratio"] == rows[1]["peer"] / rows[1]["ours"]
