"""The parser of a judge's replies: everything well-formed is read, everything else refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindllm_engine.evaluation.arena.ranking import parse_ranking, ranks_of

ABC = ["A", "B", "C"]


@pytest.mark.parametrize(
    "reply",
    [
        "B > A = C",
        "B>A=C",
        "Ranking: B > C = A",
        "排名：B > A = C",
        "最终排名: Ｂ ＞ Ａ ＝ Ｃ",
        "**Ranking: B > A = C**",
        "Ranking: **B** > **A** = **C**.",
        "Answer A is vague, B is right.\n\nFinal ranking: [[B > A = C]]\n",
        "回答A不准确；回答B引用了法条。\n排名：B > C = A。",
        "`b > a = c`",
        "**Ranking:**\n\nB > A = C",
        "Ranking: B > A = C\nRanking: B > C = A",
        "I first thought\nA > B > C\nbut no.\nRanking: B > A = C",
    ],
)
def test_rankings_that_are_read(reply: str) -> None:
    groups = parse_ranking(reply, ABC)
    assert [sorted(group) for group in groups] == [["B"], ["A", "C"]]
    assert ranks_of(groups, ABC) == [1, 0, 1]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "no ranking"),
        ("A", "no ranking"),
        ("I cannot judge this.", "no ranking"),
        ("B is best, then A, then C", "no ranking"),
        ("A > B, C", "no ranking"),
        ("A >= B > C", "no ranking"),
        ("A > > B > C", "no ranking"),
        ("The ranking is B > A > C, I think", "no ranking"),
        ("A > B", "lacks C"),
        ("Ranking: A", "lacks B, C"),
        ("A > B > C > D", "names D"),
        ("A > B > B", "lacks C"),
        ("A > B > C > A", "repeats"),
        ("Ranking: all are equal", "not a ranking"),
        ("A > B > C\nRanking: see above", "not a ranking"),
        ("A > B > C\n\nC > B > A", "differ"),
        ("Ranking: A > B > C\n排名：A > B = C", "differ"),
    ],
)
def test_replies_that_are_refused(reply: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_ranking(reply, ABC)


@st.composite
def rankings(draw: st.DrawFn) -> tuple[list[str], list[list[str]]]:
    labels = [chr(ord("A") + number) for number in range(draw(st.integers(2, 8)))]
    order = draw(st.permutations(labels))
    ties = draw(st.lists(st.booleans(), min_size=len(order) - 1, max_size=len(order) - 1))
    groups = [[order[0]]]
    for label, tied in zip(order[1:], ties, strict=True):
        if tied:
            groups[-1].append(label)
        else:
            groups.append([label])
    return labels, groups


SPACE = st.sampled_from(["", " ", "  ", "\u3000", "\t"])


@given(rankings(), st.data())
def test_what_was_ranked_comes_back(ranking: tuple[list[str], list[list[str]]], data: st.DataObject) -> None:
    labels, groups = ranking
    greater, equal = data.draw(st.sampled_from([(">", "="), ("＞", "＝")]))
    text = greater.join(equal.join(data.draw(SPACE) + label + data.draw(SPACE) for label in group) for group in groups)
    before = data.draw(st.sampled_from(["", "Ranking: ", "排名：", "thoughts > all\n\nRanking:", "**", "「"]))
    after = data.draw(st.sampled_from(["", ".", "。", "\n", "**", "\nThat is all."]))
    assert parse_ranking(before + text + after, labels) == groups


@given(st.text(alphabet=st.sampled_from("ABCDabc>=＞ \n:排名Ranking,.*x"), max_size=60))
def test_whatever_comes_is_a_full_ranking_or_refused(reply: str) -> None:
    with contextlib.suppress(ValueError):
        assert sorted(label for group in parse_ranking(reply, ABC) for label in group) == ABC
