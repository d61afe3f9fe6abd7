"""The coordinate check: what is recorded against the network's own arithmetic, and the slopes of planted power laws."""

import numpy as np
import pytest
import torch

from mindllm_engine.data.loader import Batch
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.models.minicpm import MiniCPMConfig
from mindllm_engine.studies.wind_tunnel.activation_sizes import Sizes, activations
from mindllm_engine.studies.wind_tunnel.coordinates import CoordinatesConfig, slope_over_width
from tests.studies.planted_rounds import BASE

SEEDS = [1, 2, 3]
WIDTHS = [64, 128, 256]
PLACES = ("residual stream", "logits")


def batch(tokens: int = 48) -> Batch:
    """Three documents of random tokens."""
    drawn = torch.from_numpy(np.random.default_rng(1).integers(0, 97, tokens))
    thirds = torch.arange(0, tokens + 1, tokens // 3, dtype=torch.int32)
    return Batch(drawn, drawn, torch.arange(tokens) % (tokens // 3), thirds, torch.zeros(tokens, dtype=torch.int64))


def network(**factors: float) -> MiniCPMConfig:
    return MiniCPMConfig(
        vocab_size=97, hidden_size=32, ffn_size=48, n_layers=3, n_heads=4, n_kv_heads=2, max_seq_len=16, **factors
    )  # type: ignore[arg-type]


def test_recorded_branches_add_up_to_the_stream_and_the_stream_gives_the_logits() -> None:
    config = network(scale_emb=12.0, scale_depth=1.4, width_base=16, init_std=0.1)
    model = config.build(dtype=torch.float32, seed=1)
    found = activations(model, batch())
    embedding = model.embedding[batch().tokens] * 12
    torch.testing.assert_close(found["embedding"], embedding)
    branches = sum(found[f"layer {number} {part}"] for number in (1, 2, 3) for part in ("attention", "feed-forward"))
    stream = found["residual stream"]
    torch.testing.assert_close(stream, embedding + branches, atol=1e-4, rtol=1e-4)
    normed = stream * (stream.square().mean(-1, keepdim=True) + config.norm_eps).rsqrt()
    torch.testing.assert_close(found["logits"], normed @ model.embedding.T / 2, atol=1e-4, rtol=1e-4)
    assert len(found) == 1 + 6 + 2


def test_recording_leaves_nothing_behind() -> None:
    model = network().build(dtype=torch.float32, seed=1)
    activations(model, batch())
    assert not any(layer._forward_hooks for layer in model.layers)


def test_slopes_of_power_laws() -> None:
    assert slope_over_width({width: 3 * width**0.7 for width in WIDTHS}) == pytest.approx(0.7)
    assert slope_over_width(dict.fromkeys(WIDTHS, 2.0)) == pytest.approx(0)
    for sizes in ({64: 1.0}, {64: 1.0, 128: 0.0}, {64: 1.0, 128: float("nan")}):
        with pytest.raises(DataError, match="slope over width"):
            slope_over_width(sizes)


def planted(powers: dict[str, float], spread: float, leave_out: tuple[int, int] | None = None) -> dict:
    """Measurements whose change is width^power, with a factor of its own for each seed and width."""
    random = np.random.default_rng(1)
    return {
        (name, width, seed): {
            step: {
                place: Sizes(1.0, 0.0 if step == 0 else width**power * float(np.exp(random.normal(0, spread))))
                for place in PLACES
            }
            for step in (0, 8)
        }
        for name, power in powers.items()
        for width in WIDTHS
        for seed in SEEDS
        if (width, seed) != leave_out
    }


@pytest.mark.parametrize(
    ("powers", "spread", "verdicts"),
    [
        ({"minicpm": 0.0, "standard": 0.6}, 0.01, ["confirmed", "confirmed"]),
        ({"minicpm": 0.5, "standard": 0.0}, 0.01, ["not confirmed", "not confirmed"]),
        ({"minicpm": 0.1, "standard": 0.2}, 0.5, ["not decidable", "not decidable"]),
    ],
)
def test_planted_growth_is_judged(powers: dict[str, float], spread: float, verdicts: list[str]) -> None:
    findings = CoordinatesConfig(WIDTHS, 0.01).findings(planted(powers, spread), SEEDS)
    assert [claim.verdict for claim in findings.claims] == verdicts * 2
    assert len(findings.tables[0].rows) == len(PLACES)
    assert all(len(row) == len(findings.tables[0].header) for row in findings.tables[0].rows)


def test_a_seed_without_every_width_is_left_out_and_none_at_all_is_undecided() -> None:
    powers = {"minicpm": 0.0, "standard": 0.6}
    findings = CoordinatesConfig(WIDTHS, 0.01).findings(planted(powers, 0.01, leave_out=(128, 2)), SEEDS)
    assert findings.numbers["minicpm"][0]["slope"]["count"] == 2
    findings = CoordinatesConfig(WIDTHS, 0.01).findings({}, SEEDS)
    assert {claim.verdict for claim in findings.claims} == {"not decidable"}


def test_trials_keep_the_checkpoints_that_are_measured() -> None:
    trials = CoordinatesConfig(WIDTHS, 0.01).trials(BASE, SEEDS, None)
    assert len(trials) == 2 * 3 * 3
    assert {trial.changes["train.checkpoint_every"] for trial in trials} == {4}
    assert {trial.changes["train.keep_checkpoints"] for trial in trials} == {0}


@pytest.mark.parametrize("fields", [{"widths": [64]}, {"widths": [64, 64]}, {"steps": 0}, {"every": 0}])
def test_bad_checks_are_refused(fields: dict) -> None:
    with pytest.raises(ConfigError, match="coordinates"):
        CoordinatesConfig(**({"widths": WIDTHS, "rate": 0.01} | fields)).trials(BASE, SEEDS, None)
