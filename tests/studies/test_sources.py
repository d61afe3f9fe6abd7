"""What each source teaches: planted chains whose likeness is known, arithmetic by hand, what is wrong or missing."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import yaml

from mindllm_engine.command_line import merge_mappings, parse_mapping, read_yaml
from mindllm_engine.data.shares import SourceFacts, source_shares
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.studies.report import read_findings
from mindllm_engine.studies.results import LeftOut, Results
from mindllm_engine.studies.sources.experiment import SourcesConfig, sources_of
from mindllm_engine.studies.sources.measures import (
    Place,
    against_language,
    between_languages,
    factors,
    language_ratios,
    late_share,
    mixture_weights,
    similarity,
    taught,
    teaches,
    transfer_matrix,
)
from mindllm_engine.studies.study import StudyConfig, run_study
from mindllm_engine.training.config import RunConfig
from tests.studies.chain_text import VOCAB, random_chain, study_mapping, write_base, write_chain_source, write_source

NAMES = ["en_chain", "en_near", "en_twin", "zh_far"]


def planted_chains() -> dict[str, np.ndarray]:
    """Two sources of one chain, one of a chain three quarters the same, and one of another chain."""
    chain, other = random_chain(1), random_chain(2)
    return {"en_chain": chain, "en_near": 0.75 * chain + 0.25 * other, "en_twin": chain, "zh_far": other}


def cross_entropy(text: np.ndarray, model: np.ndarray) -> float:
    """Bits a token of a chain's text, in its stationary state, under the transitions of another."""
    state = np.full(VOCAB, 1 / VOCAB)
    for _ in range(200):
        state = state @ text
    return float(-(state[:, None] * text * np.log2(model)).sum())


def planted_transfer() -> np.ndarray:
    """What networks that had learnt the chains perfectly would give."""
    chains = planted_chains()
    bits = np.array([[cross_entropy(chains[text], chains[model]) for text in NAMES] for model in NAMES])
    saved = np.log2(VOCAB) - bits
    return saved / np.diag(saved)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of the planted chains, finished."""
    folder = tmp_path_factory.mktemp("sources")
    for number, (name, chain) in enumerate(planted_chains().items()):
        lang, category = name.split("_")
        write_chain_source(folder, name, chain, seed=10 + number, lang=lang, category=category)
    base = write_base(folder, NAMES, global_batch_size=24, micro_batch_size=24)
    experiment = {"steps": 80, "eval_every": 20}
    run_study(parse_mapping(StudyConfig, study_mapping(folder, base, [1, 2], sources=experiment), "test"))
    return folder / "study"


def findings_of(folder: Path) -> dict[str, Any]:
    return orjson.loads((folder / "findings.json").read_bytes())


def test_planted_likeness_is_recovered(study: Path) -> None:
    """Networks trained for seconds come near to what perfect ones would give, pair by pair."""
    found = np.array(findings_of(study)["numbers"]["transfer"])
    assert findings_of(study)["numbers"]["sources"] == NAMES
    assert np.diag(found) == pytest.approx(1)
    planted = planted_transfer()
    assert found[planted > 0] == pytest.approx(planted[planted > 0], abs=0.15)
    assert found == pytest.approx(planted, abs=0.5), "below 0 a network is as bad as it is sure, which takes training"
    alike = dict(zip(NAMES, np.array(findings_of(study)["numbers"]["similarity"])[0], strict=True))
    assert alike["en_twin"] == pytest.approx(1, abs=0.05)
    assert alike["en_twin"] > alike["en_near"] + 0.05 > alike["zh_far"] + 0.3


def test_the_study_s_claims_and_curves(study: Path) -> None:
    findings = findings_of(study)
    verdicts = {claim["statement"][:20]: claim["verdict"] for claim in findings["claims"]}
    assert verdicts["Sources of one langu"] == "confirmed", "planted: the near ones are all of one language"
    assert [claim["verdict"] for claim in findings["claims"][2:]] == ["not decidable"] * 4, "no such categories"
    assert all("web text" not in claim["paper"] for claim in findings["claims"])
    curve = findings["numbers"]["curves"]["en_chain"]
    assert findings["numbers"]["curve_tokens"] == [0, 15360, 30720, 46080, 61440]
    assert curve[0] == pytest.approx(np.log2(VOCAB), rel=0.05)
    assert sorted(curve, reverse=True) == curve
    assert {picture["name"] for picture in findings["pictures"]} == {"curves", "matrix", "similarity"}


def test_the_mixture_completes_a_config_and_gives_the_shares_it_says(study: Path) -> None:
    base = read_yaml(str(study.parent / "base.yaml"))
    mixture = yaml.safe_load((study / "mixture.yaml").read_text())
    assert read_findings(study).files == {"mixture.yaml": (study / "mixture.yaml").read_text()}
    config = parse_mapping(RunConfig, merge_mappings(base, mixture), "test")
    facts = [SourceFacts(name, name[:2], name[3:], 19800, 600, "") for name in NAMES]
    shares = source_shares(config.data.blocks[0], facts)
    assert float(shares["zh_far"]) == pytest.approx(1 / 2.5)
    assert float(sum(shares.values())) == pytest.approx(1)
    assert float(shares["en_chain"]) == pytest.approx(0.2), "no category of the advice: three of a size share 3/5"


def test_started_again_it_trains_nothing_and_finds_the_same(study: Path) -> None:
    before = findings_of(study)
    trained = {path: path.stat().st_mtime_ns for path in study.rglob("metrics.jsonl")}
    base = study.parent / "base.yaml"
    experiment = {"steps": 80, "eval_every": 20}
    run_study(parse_mapping(StudyConfig, study_mapping(study.parent, base, [1, 2], sources=experiment), "test"))
    assert {path: path.stat().st_mtime_ns for path in study.rglob("metrics.jsonl")} == trained
    assert findings_of(study) == before


PLACES = [
    Place("en_book", "en", "book", 100),
    Place("en_code", "en", "code", 100),
    Place("en_math", "en", "math", 200),
    Place("zh_webtext", "zh", "webtext", 300),
    Place("zh_qa", "zh", "qa", 100),
]


def test_transfer_by_hand() -> None:
    untrained, trained = np.array([8.0, 4.0]), np.array([[2.0, 3.0], [5.0, 1.0]])
    found = transfer_matrix(untrained, trained, ["a", "b"])
    assert found == pytest.approx(np.array([[1, 1 / 3], [1 / 2, 1]]))
    assert similarity(found) == pytest.approx(np.array([[1, 5 / 12], [5 / 12, 1]]))


def test_teaching_counts_the_others_of_the_language_only() -> None:
    transfer = np.arange(25, dtype=float).reshape(5, 5)
    assert teaches(transfer, PLACES) == pytest.approx([1.5, 6, 10.5, 19, 23])
    assert taught(transfer, PLACES) == pytest.approx([7.5, 6, 4.5, 23, 19])
    assert teaches(transfer, [*PLACES[:2], PLACES[3]])[2] == pytest.approx(transfer[2, :2].mean()), (
        "alone in its language"
    )
    assert against_language(np.array([1.0, 5, 3, 7, 6]), PLACES, "code") == pytest.approx(3)
    assert against_language(np.array([1.0, 5, 3, 7, 6]), PLACES, "dialogue") is None
    assert between_languages(transfer, PLACES[:3]) is None


def test_a_network_that_is_worse_than_none_teaches_nothing() -> None:
    transfer = np.array([[1, 0.5, -3.0], [0.5, 1, 0.25], [-20.0, 0.75, 1]])
    places = [Place(name, lang, "web", 1) for name, lang in (("a", "en"), ("b", "en"), ("c", "en"))]
    assert teaches(transfer, places) == pytest.approx([0.25, 0.375, 0.375])
    assert taught(transfer, places) == pytest.approx([0.25, 0.625, 0.125])
    assert similarity(transfer)[0].tolist() == pytest.approx([1, 0.5, 0])
    apart = [*places[:2], Place("c", "zh", "web", 1)]
    assert between_languages(transfer, apart) == pytest.approx(0.5 - 0.25)


def test_late_share_of_an_exponential() -> None:
    """Of 1 - e^-2 that is saved by step 200, e^-1 - e^-2 is saved from step 100 on."""
    steps = list(range(0, 201, 10))
    bits = [3 + np.exp(-step / 100) for step in steps]
    assert late_share(steps, bits) == pytest.approx((np.exp(-1) - np.exp(-2)) / (1 - np.exp(-2)))
    for too_few in (([0, 10], [3.0, 2.0]), ([0, 5, 10], [3.0, 3.0, 3.0])):
        with pytest.raises(DataError, match="eval_every"):
            late_share(*too_few)


def test_advice_gives_the_direction_and_the_measurement_the_size() -> None:
    teaching = np.array([0.5, 0.5, 0.5, 0.9, 0.3])
    being_taught = np.array([0.6, 0.2, 0.4, 0.5, 0.5])
    late = np.array([0.3, 0.3, 0.1, 0.2, 0.2])
    found = factors(PLACES, teaching, being_taught, late)
    assert found == pytest.approx([1, 0.4 / 0.2, 0.1 / (0.7 / 3), 0.9 / 0.6, 1])
    against = factors(PLACES, np.array([0.5, 0.5, 0.5, 0.2, 0.3]), 1 - being_taught, 1 - late)
    assert against == pytest.approx([1, 1, 1, 1, 1]), "what speaks against the advice leaves the size as it is"
    assert factors(PLACES, teaching, np.array([0.6, -0.1, 0.4, 0.5, 0.5]), late)[1] == 4, "bounded"


def test_books_keep_their_share_by_size() -> None:
    weights = mixture_weights(PLACES, [1, 3, 0.5, 2, 1])
    assert weights["en_book"] == pytest.approx(1 / 4)
    assert weights["en_code"] == pytest.approx(3 / 4 * 300 / 400)
    assert weights["en_math"] == pytest.approx(3 / 4 * 100 / 400)
    assert weights["zh_webtext"] == pytest.approx(600 / 700)
    assert mixture_weights(PLACES[:1], [1]) == {"en_book": 1}


def test_a_network_that_saves_nothing_is_named() -> None:
    with pytest.raises(DataError, match=r"source b: its own network saves nothing .* train for more steps"):
        transfer_matrix(np.array([2.0, 2.0]), np.array([[1.0, 3.0], [1.0, 2.0]]), ["a", "b"])


def test_a_language_without_a_ratio_is_named() -> None:
    with pytest.raises(ConfigError, match=r"sources.languages: has no ratio above 0 for zh"):
        language_ratios(PLACES, {"en": 1.0})
    assert language_ratios(PLACES[:3], {"en": 1.5, "zh": 1}) == {"en": 1.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"eval_every": 50}, "half of sources.steps = 80"), ({"eval_every": 0}, "sources.eval_every: 0")],
)
def test_impossible_grids(changes: dict[str, int], message: str) -> None:
    base = {"data": {"sources": {"a": "x", "b": "y"}}}
    config = SourcesConfig(**({"steps": 80, "eval_every": 20} | changes))
    with pytest.raises(ConfigError, match=message):
        config.trials(base, [1], None)


def test_one_source_is_too_few() -> None:
    with pytest.raises(ConfigError, match="has 1 sources"):
        SourcesConfig(80, 20).trials({"data": {"sources": {"a": "x"}}}, [1], None)
    assert sources_of({"corpus": {"sources": {"b": {}}}}) == ["b"]


def test_too_few_finished_trials_are_named_with_the_reason() -> None:
    results = Results([], [LeftOut("source_a_seed1", "diverged: its held-out loss is not finite")])
    with pytest.raises(DataError, match=r"only 0 sources .* source_a_seed1: diverged: its held-out loss"):
        SourcesConfig(80, 20).analyse(results, [1])


def test_what_is_left_out_does_not_stop_the_analysis(tmp_path: Path) -> None:
    """A source without held-out text cannot be compared, and one whose network diverges is not; both are named, and
    the others analysed. A source of another tokenizer is refused."""
    for number, (name, chain) in enumerate(planted_chains().items()):
        write_chain_source(tmp_path, name, chain, seed=10 + number, lang=name[:2], category=name[3:])
    base = write_base(tmp_path, NAMES)
    content = yaml.safe_load(base.read_text())
    del content["data"]["heldout"]["en_near"]
    base.write_text(yaml.safe_dump(content))
    experiment = {"steps": 8, "eval_every": 2}
    mapping = study_mapping(tmp_path, base, [1], sources=experiment)
    page = run_study(parse_mapping(StudyConfig, mapping, "test"))
    assert page is not None
    findings = findings_of(page.parent)
    assert findings["numbers"]["sources"] == ["en_chain", "en_twin", "zh_far"]
    assert [entry["name"] for entry in findings["left_out"]] == ["source_en_near_seed1"]
    assert "corpus.holdout" in findings["left_out"][0]["reason"]
    assert all(claim["verdict"] == "not decidable" for claim in findings["claims"]), "one seed"
    write_source(tmp_path / "en_twin", iter([np.arange(VOCAB).repeat(9)]), "en", "twin", tokenizer="b" * 16)
    mapping["sources"]["steps"] = 10
    with pytest.raises(DataError, match="tokenizer"):
        run_study(parse_mapping(StudyConfig, mapping, "test"))
