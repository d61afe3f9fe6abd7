"""Orders of data: two languages that contradict each other, so that forgetting is known; measures by hand and by brute
force; what is wrong or missing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from mindllm_engine.command_line import parse_mapping
from mindllm_engine.data.plan import BlockConfig, Plan, SourceFacts
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.models.gpt_neo import GPTNeo, GPTNeoConfig
from mindllm_engine.studies.orders.experiment import OrdersConfig
from mindllm_engine.studies.orders.in_context import in_context_gain
from mindllm_engine.studies.orders.measures import (
    category_changes,
    forgetting,
    mean_curves,
    mean_jump,
    rise_from_lowest,
)
from mindllm_engine.studies.results import LeftOut, Results
from mindllm_engine.studies.study import StudyConfig, run_study
from tests.studies.chain_text import SEQ_LEN, VOCAB, study_mapping, write_base, write_source

STEPS = 60


def counting(step: int, documents: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """A deterministic language: from a symbol at random, the next is always `step` further round."""
    for first in np.random.default_rng(seed).integers(VOCAB, size=documents):
        yield (first + step * np.arange(SEQ_LEN + 1)) % VOCAB


def write_languages(folder: Path) -> list[str]:
    """Two languages of the same symbols whose every transition contradicts the other's."""
    for name, step in (("en_first", 3), ("zh_second", 6)):
        lang, category = name.split("_")
        write_source(folder / name, counting(step, 500, step), lang, category)
        write_source(folder / f"{name}.heldout", counting(step, 40, step + 100), lang, category)
    return ["en_first", "zh_second"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The findings of a study of the two languages."""
    folder = tmp_path_factory.mktemp("orders")
    base = write_base(folder, write_languages(folder))
    experiment = {"steps": STEPS, "eval_every": 10, "samples_per_chunk": 2, "examples": 3}
    page = run_study(parse_mapping(StudyConfig, study_mapping(folder, base, [1, 2, 3], orders=experiment), "test"))
    assert page is not None
    return orjson.loads((page.parent / "findings.json").read_bytes())


def test_the_blocked_order_forgets_the_first_language_and_the_others_do_not(study: dict[str, Any]) -> None:
    assert study["numbers"]["changes"] == [[0, "first"], [STEPS // 2, "second"]]
    for seed in ("1", "2", "3"):
        runs = {order: of_order[seed] for order, of_order in study["numbers"]["orders"].items()}
        assert runs["blocked"]["forgotten"] > 2, "bits a token, of a language that was learnt for 30 steps"
        assert runs["shuffled"]["forgotten"] < 0.2
        assert runs["chunked"]["forgotten"] < 0.4
        assert runs["blocked"]["categories"]["first"][3] < 0.7, "learnt at the change"
        assert runs["blocked"]["languages"]["zh"][-1] < 0.7
        assert runs["blocked"]["overall"][-1] > runs["shuffled"]["overall"][-1] + 1
        assert runs["blocked"]["jump"] > runs["shuffled"]["jump"] + 1


def test_claims_of_the_two_languages(study: dict[str, Any]) -> None:
    verdicts = [claim["verdict"] for claim in study["claims"]]
    assert verdicts[:3] == ["confirmed"] * 3, "jumps, forgetting, shuffled better than blocked"
    assert verdicts[-1] == "not decidable"
    assert "within a document" in study["claims"][4]["reason"]
    assert all(claim["paper"] == "" for claim in study["claims"])
    assert {picture["name"] for picture in study["pictures"]} == {"training", "languages", "categories"}


def test_measures_by_hand() -> None:
    assert rise_from_lowest([4, 2, 1, 1.5]) == pytest.approx(0.5)
    assert rise_from_lowest([4, 2, 1]) == 0
    assert forgetting({"a": [3, 1, 2], "b": [3, 3, 1], "c": [9, 5, 8]}, ["a", "c"]) == pytest.approx(2)
    losses = {step: 2.0 if step <= 10 else 3.5 if step <= 20 else 1.5 for step in range(1, 31)}
    assert mean_jump(losses, [10]) == pytest.approx(1.5)
    assert mean_jump(losses, [10, 20]) == pytest.approx((1.5 + 2) / 2)
    assert mean_jump(losses, [3, 28]) is None, "no room on one side"
    records = [{"heldout_bpb/a": 4.0, "heldout_bpb/b": 2.0}, {"heldout_bpb/a": 1.0, "heldout_bpb/b": 2.0}]
    assert mean_curves(records, {"both": ["a", "b"], "one": ["a"]}) == {"both": [3, 1.5], "one": [4, 1]}


def test_changes_lie_where_the_plan_reads_another_category() -> None:
    """Against the sources of the plan's own samples, one by one."""
    sizes = {"en_a": 4000, "zh_a": 1000, "en_c": 2500, "en_b": 3000}
    facts = [SourceFacts(name, name[:2], name[3:], tokens, 10, name) for name, tokens in sizes.items()]
    blocks = [BlockConfig(order="blocked", tokens=320 * 16), BlockConfig(order="shuffled", tokens=160 * 16)]
    plan = Plan(facts, [*blocks, BlockConfig(order="blocked")], 16, seed=1, samples_needed=640)
    ids, _ = plan.locate(np.arange(640))
    categories = [facts[number].category for number in ids]
    expected = [
        (sample // 8, categories[sample])
        for sample in [*range(320), *range(480, 640)]
        if sample in (0, 480) or categories[sample] != categories[sample - 1]
    ]
    assert category_changes(plan, 8) == expected
    assert [name for _, name in expected] == ["a", "b", "c", "a", "b", "c"]


@pytest.fixture
def files(tmp_path: Path) -> tuple[TokenFile, TokenFile]:
    """Held-out and training documents, some of them short or of one token."""
    rng = np.random.default_rng(5)
    for name, documents in (("heldout", 7), ("training", 30)):
        lengths = [1, *rng.integers(2, 20, size=documents)]
        write_source(tmp_path / name, (rng.integers(0, VOCAB, size=length) for length in lengths), "en", "x")
    return TokenFile(tmp_path / "heldout"), TokenFile(tmp_path / "training")


def small_network() -> GPTNeo:
    config = GPTNeoConfig(VOCAB, 32, 64, 2, 2, SEQ_LEN, 16)
    model = config.build(device=torch.device("cpu"), dtype=torch.float32, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # far from uniform
    return model.eval()


def test_in_context_gain_is_that_of_a_plain_loop(files: tuple[TokenFile, TokenFile]) -> None:
    """One sequence after the other, with torch's own cross-entropy on the logits."""
    model, (heldout, training) = small_network(), files
    targets = [heldout.document(number)[:8] for number in range(1, 8)]
    shown = [training.document(number)[:8] for number in range(1, 31)]

    def losses(context: list[NDArray[Any]], target: NDArray[Any]) -> list[float]:
        ids = torch.from_numpy(np.concatenate([*context, target]).astype(np.int64))
        offsets = torch.tensor([0, len(ids)], dtype=torch.int32)
        logits = model(ids, torch.arange(len(ids)), offsets)
        every = F.cross_entropy(logits[:-1].double(), ids[1:], reduction="none")
        return every[len(ids) - len(target) :].tolist()

    alone = [loss for target in targets for loss in losses([], target)]
    after = [loss for n, target in enumerate(targets) for loss in losses(shown[3 * n : 3 * n + 3], target)]
    expected = np.mean(alone) - np.mean(after)
    assert abs(expected) > 0.01
    assert in_context_gain(model, heldout, training, examples=3, length=32) == pytest.approx(expected, abs=1e-5)


def test_a_network_that_sees_no_context_gains_nothing(files: tuple[TokenFile, TokenFile]) -> None:
    model = small_network()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position" in name or "out" in name:
                parameter.zero_()
    assert in_context_gain(model, *files, examples=3, length=32) == pytest.approx(0, abs=1e-6)


def test_too_few_documents_give_no_gain(files: tuple[TokenFile, TokenFile], tmp_path: Path) -> None:
    heldout, _ = files
    write_source(tmp_path / "few", iter([np.arange(9), np.arange(1)]), "en", "x")
    assert in_context_gain(small_network(), heldout, TokenFile(tmp_path / "few"), examples=2, length=30) is None
    write_source(tmp_path / "none", iter([np.arange(1)]), "en", "x")
    assert in_context_gain(small_network(), TokenFile(tmp_path / "none"), heldout, examples=2, length=30) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"examples": 0}, "orders.examples: 0"),
        ({"eval_every": 31}, "half of orders.steps = 60"),
        ({"eval_every": 0}, "orders.eval_every: 0"),
    ],
)
def test_impossible_grids(changes: dict[str, int], message: str) -> None:
    config = OrdersConfig(**({"steps": 60, "eval_every": 10} | changes))
    with pytest.raises(ConfigError, match=message):
        config.trials({}, [1], None)


def test_the_orders_differ_in_nothing_else() -> None:
    blocks = [{"tokens": 1000, "weights": {"a": 1}}, {"order": "blocked", "categories": {"x": 2}}]
    trials = OrdersConfig(60, 10).trials({"data": {"blocks": blocks}}, [1, 2, 3], None)
    assert len(trials) == 9
    for trial in trials:
        assert [block.pop("order") for block in trial.changes["data.blocks"]] == [trial.settings["order"]] * 2
        assert trial.changes["faults.sigma"] == 0, "a change of category is no bad step"
    assert len({str(dict(trial.changes) | {"run.seed": 0}) for trial in trials}) == 1


def test_too_few_orders_are_named_with_the_reason() -> None:
    results = Results([], [LeftOut("order_blocked_seed1", "diverged: its held-out loss is not finite")])
    with pytest.raises(DataError, match=r"only 0 of 3 orders .* order_blocked_seed1: diverged"):
        OrdersConfig(60, 10).analyse(results, [1])


def test_a_diverged_order_leaves_the_others_comparable_and_other_text_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path, write_languages(tmp_path))
    mapping = study_mapping(tmp_path, base, [1], orders={"steps": 6, "eval_every": 2})
    page = run_study(parse_mapping(StudyConfig, mapping, "test"))
    assert page is not None
    blocked = next((page.parent / "trials").glob("order_blocked_seed1-*"))
    outcome = {"kind": "diverged", "reason": "step 3: a weight is not finite", "seconds": 1.0}
    (blocked / "outcome.json").write_bytes(orjson.dumps(outcome))
    run_study(parse_mapping(StudyConfig, mapping, "test"))
    findings = orjson.loads((page.parent / "findings.json").read_bytes())
    assert [entry["name"] for entry in findings["left_out"]] == ["order_blocked_seed1"]
    assert findings["numbers"]["changes"] == []
    assert [claim["verdict"] for claim in findings["claims"]] == ["not decidable"] * 6
    assert "no seed has this number" in findings["claims"][0]["reason"]
    write_source(tmp_path / "en_first", counting(3, 500, seed=9), "en", "first")
    mapping["study"]["seeds"] = [1, 2]
    with pytest.raises(DataError, match=r"order_.*_seed1 and order_.*_seed2 differ in their source en_first"):
        run_study(parse_mapping(StudyConfig, mapping, "test"))
