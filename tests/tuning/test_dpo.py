"""DPO: records of pairs, its loss against the formula in fp64 and TRL's trainer, and whole tunings by the command."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mindllm_engine.corpus.chat_template import ChatTemplate, Message, TemplateConfig
from mindllm_engine.data.loader import IGNORED, pack
from mindllm_engine.data.loss_mask import NEW_SEQUENCE, SUPERVISED
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.models.gpt_neo import from_hf_state_dict, to_hf_state_dict
from mindllm_engine.training.weights import load_model
from mindllm_engine.tuning import reference_scores as scores_module
from mindllm_engine.tuning.config import DpoConfig
from mindllm_engine.tuning.preference_stage import PreferenceStage, dpo_losses, with_pairs
from mindllm_engine.tuning.preferences import Pair, document_of, read_pairs
from mindllm_engine.tuning.records import BadRecord
from mindllm_engine.tuning.reference_scores import sequence_key
from mindllm_engine.tuning.token_documents import Document
from tests.models.test_gpt_neo import CONFIG as NEO
from tests.models.test_gpt_neo import peer
from tests.training.tiny_run import records as metrics
from tests.tuning.tiny_tuning import base_run, launch, make_tokenizer, sums, tune_here, write_records, write_tuning

CPU = torch.device("cpu")
SEQ_LEN = 160
KEYS = ("loss", "grad_norm", "accuracy", "margin", "reward/chosen", "reward/rejected")


def pairs(count: int, seed: int) -> list[dict[str, str]]:
    """Small sums; the rejected answers are rude, and of other lengths."""
    return [
        {
            "instruction": record["instruction"],
            "input": record["input"],
            "chosen": record["output"],
            "rejected": f"and {number % 4} is no sum" * (1 + number % 2),
        }
        for number, record in enumerate(sums(count, seed))
    ]


@pytest.fixture(scope="module", params=["mindllm", "gpt_neo"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return long_base(tmp_path_factory.mktemp(request.param), request.param)


def long_base(folder: Path, network: str, steps: int = 4) -> Path:
    """A base run that takes sequences long enough for pairs."""
    return base_run(folder, network, steps, seq_len=SEQ_LEN)


@pytest.fixture
def tuning(tmp_path: Path, base: Path) -> Path:
    return dpo_config(tmp_path, base)


def dpo_config(folder: Path, base: Path, **overrides: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = write_records(folder / "pairs.jsonl", pairs(100, 1))
    records = {"pairs": {"path": str(path)}}
    settings: dict[str, Any] = {
        "tuning__dpo": {"beta": 0.2, "label_smoothing": 0.1},
        "data__seq_len": SEQ_LEN,
    } | overrides
    return write_tuning(folder, base, records, **settings)


# Records


def test_reads_every_shape_of_a_pair(tmp_path: Path) -> None:
    path = write_records(
        tmp_path / "pairs.jsonl",
        [
            {"prompt": "一加一等于几？", "chosen": "二。", "rejected": "三。"},
            {"instruction": "Add.", "input": "1 and 1", "chosen": "2", "rejected": "3"},
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "Hello"},
                    {"role": "user", "content": "1 + 1?"},
                ],
                "chosen": [{"role": "assistant", "content": "2"}],
                "rejected": {"role": "assistant", "content": "3"},
            },
        ],
    )
    first, second, third = read_pairs(path)
    assert first == Pair("pairs.jsonl:1", (Message("user", "一加一等于几？"),), "二。", "三。")
    assert second == Pair("pairs.jsonl:2", (Message("user", "Add.\n1 and 1"),), "2", "3")
    assert isinstance(third, Pair)
    assert [message.role for message in third.prompt] == ["system", "user", "assistant", "user"]
    assert (third.chosen, third.rejected) == ("2", "3")


def test_an_empty_place_for_a_chat_is_none(tmp_path: Path) -> None:
    record = {"messages": None, "prompt": "a", "chosen": {"from": "gpt", "value": "b"}, "rejected": "c"}
    (pair,) = read_pairs(write_records(tmp_path / "pairs.jsonl", [record]))
    assert pair == Pair("pairs.jsonl:1", (Message("user", "a"),), "b", "c")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("no JSON", "no JSON object"),
        ({"prompt": "a", "chosen": "b"}, "no rejected"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "empty chosen answer"),
        ({"prompt": "a", "chosen": "b", "rejected": " \n"}, "rejected answer of only whitespace"),
        ({"prompt": "a", "chosen": "\u200b", "rejected": "b"}, "chosen answer of only whitespace"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "rejected is neither a text"),
        ({"prompt": "a", "chosen": {"role": "user", "content": "b"}, "rejected": "c"}, "chosen message is not the"),
        ({"prompt": "a", "chosen": "b", "rejected": [{"from": ["gpt"], "value": "c"}]}, "rejected message is not the"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "the same"),
        ({"prompt": " ", "chosen": "b", "rejected": "c"}, "instruction of only whitespace"),
        ({"prompt": 5, "chosen": "b", "rejected": "c"}, "instruction is no text"),
        ({"chosen": "b", "rejected": "c"}, "no prompt"),
        ({"messages": [], "chosen": "b", "rejected": "c"}, "the prompt is not the user's|first message"),
        (
            {
                "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                "chosen": "b",
                "rejected": "c",
            },
            "last message of the prompt is not the user's",
        ),
    ],
)
def test_names_what_is_wrong_with_a_pair(tmp_path: Path, record: Any, reason: str) -> None:
    (found,) = read_pairs(write_records(tmp_path / "bad.jsonl", [record]))
    assert isinstance(found, BadRecord)
    assert found.where == "bad.jsonl:1"
    assert any(part in found.reason for part in reason.split("|")), found.reason


def test_bad_and_long_pairs_are_counted_with_their_lines(
    tmp_path: Path, base: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    long = {"prompt": "Add the numbers.", "chosen": "1 and 2 " * 40, "rejected": "3"}
    records = [*pairs(20, 3), {"prompt": "a", "chosen": "b", "rejected": "b"}, long, "{"]
    path = write_records(tmp_path / "mixed.jsonl", records)
    config = write_tuning(
        tmp_path, base, {"mixed": {"path": str(path)}}, tuning__dpo={}, data__seq_len=SEQ_LEN, train__steps=1
    )
    tune_here(config)
    told = capfd.readouterr().err
    assert "mixed: dropped 1: a pair longer than 161 tokens" in told
    assert "mixed.jsonl:21: the chosen and the rejected answer are the same" in told
    assert "mixed.jsonl:23: no JSON object" in told
    with pytest.raises(DataError, match=r"mixed.jsonl:21: "):
        tune_here(config, "--tuning.bad_records", "refuse")


# The loss


def formula(chosen: float, rejected: float, beta: float, smoothing: float) -> float:
    """DPO's equation 7 for differences of log-probabilities from the reference, by sums and exponentials in fp64."""
    margin = beta * (chosen - rejected)
    return (1 - smoothing) * math.log1p(math.exp(-margin)) + smoothing * math.log1p(math.exp(margin))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_and_gradients_are_the_formula(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = (-30 * torch.rand(20, 2, generator=generator)).requires_grad_()
    reference = -30 * torch.rand(20, 2, generator=generator)
    losses, rewards = dpo_losses(log_probs, reference, 0.3, smoothing)
    gaps = (log_probs.detach().double() - reference.double()).tolist()
    expected = [formula(chosen, rejected, 0.3, smoothing) for chosen, rejected in gaps]
    np.testing.assert_allclose(losses.detach(), expected, rtol=1e-5)
    np.testing.assert_allclose(rewards.detach(), 0.3 * np.array(gaps), rtol=1e-5, atol=1e-6)
    losses.sum().backward()
    assert log_probs.grad is not None
    h = 1e-4
    slopes = [(formula(c + h, r, 0.3, smoothing) - formula(c - h, r, 0.3, smoothing)) / (2 * h) for c, r in gaps]
    np.testing.assert_allclose(log_probs.grad[:, 0], slopes, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(log_probs.grad[:, 1], -np.array(slopes), rtol=1e-3, atol=1e-6)


def answer_log_probs(model: Any, file: TokenFile) -> list[tuple[float, float]]:
    """log p of the chosen and rejected answer of each pair, one sequence at a time, in fp64 from its logits."""
    assert file.mask is not None
    found = []
    for start, length in zip(np.cumsum(file.lengths) - file.lengths, file.lengths, strict=True):
        ids = np.empty(length, np.int64)
        file.gather(np.array([start]), np.array([length]), ids)
        flags = file.mask[start : start + length]
        (border,) = np.flatnonzero(flags & NEW_SEQUENCE)
        sums = []
        for part, of_mask in ((ids[:border], flags[:border]), (ids[border:], flags[border:])):
            tokens = torch.from_numpy(part)
            with torch.no_grad():
                logits = model(tokens, torch.arange(len(part)), torch.tensor([0, len(part)], dtype=torch.int32))
            log_p = logits.double().log_softmax(1)[:-1].gather(1, tokens[1:, None])[:, 0]
            sums.append(log_p[torch.from_numpy((of_mask[1:] & SUPERVISED).astype(bool))].sum().item())
        found.append((sums[0], sums[1]))
    return found


def test_heldout_losses_before_and_after_are_those_of_every_pair_by_itself(tuning: Path, base: Path) -> None:
    tune_here(tuning)
    run = tuning.parent / "run"
    (prefix,) = (tuning.parent / "tokens").glob("pairs-*/heldout.bin")
    file = TokenFile(prefix.with_suffix(""))
    reference = answer_log_probs(load_model(base, CPU)[0], file)
    policy = answer_log_probs(load_model(run, CPU)[0], file)
    losses = [formula(p[0] - r[0], p[1] - r[1], 0.2, 0.1) for p, r in zip(policy, reference, strict=True)]
    chosen, rejected = ([0.2 * (p[side] - r[side]) for p, r in zip(policy, reference, strict=True)] for side in (0, 1))
    heldout = [record for record in metrics(run) if "heldout_loss" in record]
    assert heldout[0]["heldout_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert heldout[0]["heldout_margin"] == pytest.approx(0, abs=1e-5)
    last = heldout[-1]
    assert last["heldout_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert last["heldout_reward/chosen"] == pytest.approx(np.mean(chosen), rel=1e-3)
    assert last["heldout_reward/rejected"] == pytest.approx(np.mean(rejected), rel=1e-3)
    assert last["heldout_accuracy"] == np.mean(np.array(chosen) > np.array(rejected))
    assert "heldout_bpb" not in last
    assert last["heldout_loss"] < math.log(2) - 0.05
    assert last["heldout_accuracy"] > 0.9


def test_micro_batches_and_ranks_change_nothing(tuning: Path) -> None:
    """The mean is over the pairs of the global batch, however many fall on a micro-batch or rank."""
    tune_here(tuning)
    expected = metrics(tuning.parent / "run")
    one = tuning.parent / "one"
    tune_here(tuning, "--run.dir", str(one), "--train.micro_batch_size", "8")
    two = tuning.parent / "two"
    done = launch(
        "tune.py", "--config", str(tuning), "--run.dir", str(two), "--tuning.dir", str(tuning.parent / "own"), ranks=2
    )
    assert done.returncode == 0, done.stderr
    for other in (one, two):
        for ours, theirs in zip(expected, metrics(other), strict=True):
            for key in KEYS:
                if key in ours:
                    assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6), key
            assert ours.get("heldout_loss", 0) == pytest.approx(theirs.get("heldout_loss", 0), rel=1e-5)
    ours, theirs = (
        np.load(next(folder.glob("reference-*.npz"))) for folder in (tuning.parent / "tokens", tuning.parent / "own")
    )
    assert np.array_equal(ours["keys"], theirs["keys"])
    np.testing.assert_allclose(ours["log_probs"], theirs["log_probs"], rtol=1e-5)


def test_resumes_bit_for_bit_and_needs_no_reference_but_its_file(tuning: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune_here(tuning)
    stopped = tuning.parent / "stopped"

    def refuse(*args: object) -> None:
        raise AssertionError("the reference was computed again")

    monkeypatch.setattr(scores_module, "score_share", refuse)
    tune_here(tuning, "--run.dir", str(stopped), "--train.stop_after", "3")
    tune_here(tuning, "--run.dir", str(stopped))
    expected = dict(load_model(tuning.parent / "run", CPU)[0].named_parameters())
    assert all(torch.equal(value, expected[name]) for name, value in load_model(stopped, CPU)[0].named_parameters())


def test_dpo_with_lora(tmp_path: Path, base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = dpo_config(tmp_path, base, tuning__lora={"rank": 4}, optim__lr=1e-2, train__steps=8)
    tune_here(config)
    heldout = [record for record in metrics(tmp_path / "run") if "heldout_loss" in record]
    assert heldout[0]["heldout_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert heldout[-1]["heldout_loss"] < math.log(2) - 0.05
    assert (tmp_path / "run" / "merged" / "checkpoints").is_dir()
    told = capfd.readouterr().err
    assert "nats a pair" in told
    assert "margin" in told


def test_another_reference_has_another_file(tuning: Path, base: Path) -> None:
    tune_here(tuning, "--train.steps", "1")
    other = long_base(tuning.parent / "other", "mindllm" if "mindllm" in str(base) else "gpt_neo", steps=6)
    tune_here(tuning, "--train.steps", "1", "--run.init_from", str(other), "--run.dir", str(tuning.parent / "second"))
    tune_here(tuning, "--train.steps", "1", "--train.precision", "bf16", "--run.dir", str(tuning.parent / "third"))
    assert len(list((tuning.parent / "tokens").glob("reference-*.npz"))) == 3
    with pytest.raises(ConfigError, match=r"run.init_from: .* is not the reference that this run began with"):
        tune_here(tuning, "--train.steps", "1", "--run.init_from", str(other))


def test_a_damaged_reference_file_is_named(tuning: Path) -> None:
    tune_here(tuning, "--train.steps", "1")
    (path,) = (tuning.parent / "tokens").glob("reference-*.npz")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"reference-.*npz: cannot be read .* delete it"):
        tune_here(tuning, "--run.dir", str(tuning.parent / "again"))


@pytest.mark.parametrize(("option", "value"), [("beta", "0"), ("beta", "-1"), ("label_smoothing", "0.5")])
def test_refuses_impossible_values(tuning: Path, option: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"tuning.dpo.{option}"):
        tune_here(tuning, f"--tuning.dpo.{option}", value)


def test_only_the_last_answer_is_learnt(tmp_path: Path) -> None:
    template = ChatTemplate(TemplateConfig(), make_tokenizer(tmp_path / "t.model"))
    chat = (Message("user", "1 and 1"), Message("assistant", "The sum is 2"), Message("user", "2 and 2"))
    document = document_of(Pair("p:1", chat, "4", "no sum"), template, 1000)
    assert isinstance(document, Document)
    (border,) = np.flatnonzero(document.mask & NEW_SEQUENCE)
    prompt = template.prompt(chat)
    for ids, mask, answer in (
        (document.ids[:border], document.mask[:border], "4"),
        (document.ids[border:], document.mask[border:], "no sum"),
    ):
        assert ids[: len(prompt)].tolist() == prompt
        assert not (mask[: len(prompt)] & SUPERVISED).any()
        assert (mask[len(prompt) :] & SUPERVISED).all()
        assert ids.tolist() == template.render((*chat, Message("assistant", answer))).ids.tolist()


def test_losses_and_gradients_are_those_of_trl(tmp_path: Path) -> None:
    """TRL's trainer on transformers' GPT-Neo of the same weights, with the same reference and token ids. (TRL 1.16 has
    no label smoothing in this loss; its "robust" is another.)"""
    pytest.importorskip("trl")
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig as TrlConfig
    from trl import DPOTrainer

    policy, reference = peer(0), peer(1)
    ours, our_reference = NEO.build(seed=0), NEO.build(seed=0)
    from_hf_state_dict(ours, policy.state_dict())
    from_hf_state_dict(our_reference, reference.state_dict())
    words = {f"w{number}": number for number in range(60)} | {"<pad>": 60, "</s>": 61, "<unk>": 62}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")), pad_token="<pad>", eos_token="</s>"
    )
    args = TrlConfig(
        output_dir=str(tmp_path), beta=0.3, loss_type="sigmoid", use_cpu=True, report_to=[], bf16=False,
        gradient_checkpointing=False,
    )  # fmt: skip
    dataset = Dataset.from_list([{"prompt": "w1 w2", "chosen": " w3", "rejected": " w4"}])
    trainer = DPOTrainer(policy, reference, args, train_dataset=dataset, processing_class=tokenizer)
    generator = torch.Generator().manual_seed(3)
    lengths = ((5, 9, 6), (7, 4, 12), (3, 8, 8))  # prompt, chosen, rejected
    prompts = [torch.randint(0, 60, (n,), generator=generator) for n, _, _ in lengths]
    answers = [[torch.randint(0, 60, (n,), generator=generator) for n in (c, r)] for _, c, r in lengths]
    rows = [(p, a[side]) for side in (0, 1) for p, a in zip(prompts, answers, strict=True)]
    width = max(len(p) + len(a) for p, a in rows)
    padded = torch.full((len(rows), width), 60)
    attention, completion = torch.zeros_like(padded), torch.zeros_like(padded)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        padded[row, :end] = torch.cat((prompt, answer))
        attention[row, :end] = 1
        completion[row, len(prompt) : end] = 1
    inputs = {"input_ids": padded, "attention_mask": attention, "completion_mask": completion}
    their_loss = trainer._compute_loss(trainer.model, inputs, return_outputs=False)
    their_loss.backward()

    # Ours: pair by pair, chosen and rejected one after the other, in one pack.
    samples, counted = [], []
    for prompt, (chosen, rejected) in zip(prompts, answers, strict=True):
        ids = torch.cat((prompt, chosen, prompt, rejected)).numpy()
        border = len(prompt) + len(chosen)
        learnt = np.zeros(len(ids), bool)
        learnt[len(prompt) : border] = learnt[border + len(prompt) :] = True
        samples.append((np.append(ids, 0), np.array([border, len(ids)])))
        counted.append(np.append(learnt[1:], False))
    batch = pack(samples, np.zeros(len(samples), np.int64))
    batch.targets[torch.from_numpy(~np.concatenate(counted))] = IGNORED
    scores = np.zeros((len(samples), 2))
    with torch.no_grad():
        nats = our_reference(batch.tokens, batch.positions, batch.cu_seqlens, targets=batch.targets)
    for number, (begin, end) in enumerate(itertools.pairwise(batch.cu_seqlens.tolist())):
        scores.flat[number] = -nats[begin:end].sum()
    keys = [
        sequence_key(batch.tokens[begin : end - 1].numpy(), batch.targets[begin : end - 1].numpy() != IGNORED)
        for begin, end in itertools.pairwise(batch.cu_seqlens.tolist())
    ]
    order = np.argsort(np.array(keys, np.uint64))
    known = scores_module.ReferenceScores(np.array(keys, np.uint64)[order], scores.flatten()[order])
    stage = PreferenceStage(SimpleNamespace(tuning=SimpleNamespace(dpo=DpoConfig(beta=0.3))), None)
    loss = stage.losses(ours, with_pairs(batch, known), None).values.mean()
    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-5)
    loss.backward()
    expected = {name: parameter.grad for name, parameter in policy.named_parameters()}
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(parameter.grad)  # the name mapping then gives the gradients under transformers' names
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in to_hf_state_dict(ours).items():
        assert (gradient - expected[name]).abs().max() < 1e-5 * largest, name
