"""The loss of a step is the mean over the learnt tokens of the whole global batch, however they fall on micro-batches
and ranks: against dense computations in fp64, record by record (MindLLM), and on one padded batch of Transformers'
GPT-Neo with labels."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mindllm_engine.corpus.tokenizer import Tokenizer
from mindllm_engine.data.stream import packed_windows
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.evaluation.gpt_neo_checkpoint import save_hf_checkpoint
from mindllm_engine.models.gpt_neo import GPTNeo
from mindllm_engine.models.mindllm import MindLLM
from mindllm_engine.training.weights import load_model
from mindllm_engine.tuning.tune import prepare
from tests.models.naive_mindllm import naive_logits, naive_losses
from tests.models.test_mindllm import unpack_parameters
from tests.training.tiny_run import records as metrics
from tests.tuning.tiny_tuning import (
    SEQ_LEN,
    base_run,
    launch,
    read_tuning,
    sums,
    tune_here,
    write_records,
    write_tuning,
)

CPU = torch.device("cpu")
IGNORED = -100


@pytest.fixture(scope="module", params=["mindllm", "gpt_neo"])
def tuning(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step over each record once: the global batch is an epoch, an even number of samples."""
    folder = tmp_path_factory.mktemp(request.param)
    base = base_run(folder / "base", request.param)
    # Answers of very different lengths, so that means of means would show.
    records = sums(60, 3) + [
        {"instruction": "Count.", "output": "1 and 2 and 3 and 4 and 5 and 6 and 7"[: 1 + number % 37]}
        for number in range(40)
    ]
    path = write_records(folder / "records.jsonl", records)
    config = write_tuning(folder, base, {"all": {"path": str(path)}}, tuning__heldout=0.0, train__steps=1)
    train = prepare(read_tuning(config, "--train.global_batch_size", "2")).run.data.sources["all"]
    samples = packed_windows(TokenFile(train), SEQ_LEN).samples
    assert samples % 2 == 0, "add a record or take one away"
    return write_tuning(
        folder, base, {"all": {"path": str(path)}},
        tuning__heldout=0.0, train__steps=1, train__global_batch_size=samples, train__micro_batch_size=1,
    )  # fmt: skip


def step_record(run: Path) -> dict[str, float]:
    return next(record for record in metrics(run) if "grad_norm" in record)


def chats(config: Path) -> list[tuple[list[int], list[int]]]:
    """The records as (ids, labels), written down from what the template means."""
    base = Path(read_tuning(config).run.init_from or "")
    tokenizer = Tokenizer(base / "tokenizer.model")
    user, assistant, end = (tokenizer.special_id(name) for name in ("<|user|>", "<|assistant|>", "<|end|>"))
    made = []
    for line in (config.parent / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        asked = record["instruction"] + (f"\n{record['input']}" if record.get("input") else "")
        prompt = [1, user, *tokenizer.encode(asked), end, assistant]
        answer = [*tokenizer.encode(record["output"]), end, 2]
        made.append((prompt + answer, [IGNORED] * len(prompt) + answer))
    return made


def mindllm_reference(model: MindLLM, records: list[tuple[list[int], list[int]]]) -> tuple[Tensor, list[Tensor]]:
    """The mean loss over all learnt tokens, and the leaves that it has gradients for; one record at a time, fp64."""
    config = model.config
    parameters = unpack_parameters(model.double())
    losses, count = [], 0
    for ids, labels in records:
        tokens = torch.tensor(ids[:-1])
        logits = naive_logits(parameters, tokens, config.n_layers, config.n_heads, config.rope_base, config.norm_eps)
        losses.append(naive_losses(logits, torch.tensor(labels[1:])).sum())
        count += sum(label != IGNORED for label in labels[1:])
    return torch.stack(losses).sum() / count, list(parameters.values())


def gpt_neo_reference(
    model: GPTNeo, records: list[tuple[list[int], list[int]]], folder: Path
) -> tuple[Tensor, list[Tensor]]:
    """Transformers' own loss on one padded batch, fp64."""
    from transformers import GPTNeoForCausalLM

    save_hf_checkpoint(model, folder)
    reference = GPTNeoForCausalLM.from_pretrained(folder, dtype=torch.float64)
    longest = max(len(ids) for ids, _ in records)

    def padded(rows: list[list[int]], value: int) -> Tensor:
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])

    loss = reference(
        input_ids=padded([ids for ids, _ in records], 0),
        attention_mask=padded([[1] * len(ids) for ids, _ in records], 0),
        labels=padded([labels for _, labels in records], IGNORED),
    ).loss
    return loss, list(reference.parameters())


def test_a_step_is_the_mean_over_the_learnt_tokens_of_the_global_batch(tuning: Path, tmp_path: Path) -> None:
    model, _ = load_model(Path(read_tuning(tuning).run.init_from or ""), CPU)
    if isinstance(model, MindLLM):
        loss, leaves = mindllm_reference(model, chats(tuning))
    else:
        loss, leaves = gpt_neo_reference(model, chats(tuning), tmp_path / "hf")
    loss.backward()
    grad_norm = torch.stack([leaf.grad.square().sum() for leaf in leaves if leaf.grad is not None]).sum().sqrt()
    samples = read_tuning(tuning).train.global_batch_size
    for micro_batch, ranks in ((1, 1), (samples, 1), (1, 2)):
        run = tmp_path / f"{micro_batch}x{ranks}"
        options = ["--train.micro_batch_size", str(micro_batch), "--run.dir", str(run)]
        if ranks == 1:
            tune_here(tuning, *options)
        else:
            done = launch("tune.py", "--config", str(tuning), *options, ranks=ranks)
            assert done.returncode == 0, done.stderr
        record = step_record(run)
        assert record["loss"] == pytest.approx(loss.item(), rel=2e-6), (micro_batch, ranks)
        assert record["grad_norm"] == pytest.approx(grad_norm.item(), rel=2e-5), (micro_batch, ranks)


def test_gradients_of_packed_masked_samples_are_transformers_own(tmp_path: Path) -> None:
    from transformers import GPTNeoForCausalLM

    from mindllm_engine.data.loader import Loader
    from mindllm_engine.models.gpt_neo import to_hf_state_dict
    from mindllm_engine.training.setup import make_plan
    from mindllm_engine.training.stage import Stage

    base = base_run(tmp_path / "base", "gpt_neo")
    path = write_records(tmp_path / "records.jsonl", sums(12, 4) + sums(9, 5, "zh"))
    config = write_tuning(
        tmp_path, base, {"all": {"path": str(path)}}, tuning__heldout=0.0, train__steps=1, train__global_batch_size=2
    )
    run = prepare(read_tuning(config)).run
    file = TokenFile(run.data.sources["all"])
    samples = packed_windows(file, SEQ_LEN).samples
    run.train.global_batch_size = samples
    loader = Loader(make_plan(run, {"all": file}), [file], run.model.selected.vocab_size, 0, 1)
    model, _ = load_model(base, CPU)
    assert isinstance(model, GPTNeo)
    save_hf_checkpoint(model, tmp_path / "hf")
    model = model.double()
    batch = loader.read(torch.arange(samples).numpy())
    scored = Stage().losses(model, batch, grad_scale=None)
    (scored.values.sum() / scored.counted.sum()).backward()

    reference = GPTNeoForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float64)
    records = chats(config)
    learnt = sum(label != IGNORED for _, labels in records for label in labels)
    assert int(scored.counted.sum()) == learnt
    total = sum(
        reference(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        * sum(label != IGNORED for label in labels)
        for ids, labels in records
    )
    (total / learnt).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    gradients = to_hf_state_dict(model)
    compared = 0
    for name, parameter in reference.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-7, atol=1e-9, msg=name)
            compared += 1
    assert compared >= 20
