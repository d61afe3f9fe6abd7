"""How much faster is the engine's adapter than lm-eval's own `hf` backend on few-shot questions? One process, one run.

    python benchmarks/evaluation.py [--json FILE] [--toy]

200 questions of MMLU and CMMLU with five examples each go through `loglikelihood` of both, texts in and log-likelihoods
out, tokenisation included: the same requests, the same fp32 weights (a random GPT-Neo of 10 M parameters), the same
tokenizer. Two selections: the first 100 questions of each benchmark, in the order of the file, as `--limit` takes them
(a subject each, as in a whole run, where subjects have 50 to 1,500 questions); and 200 spread over all 124 subjects,
where hardly two questions share their examples. `hf` runs with the best of its batch sizes, found in a first round (its
"auto" takes the largest allowed on a CPU, after five forwards to find it, so 8 stands for it). Then the two take turns.

Processor seconds decide, of one thread: other work on the machine does not count in them. Seconds by the clock stand
beside them. Questions come from $MINDLLM_DATA or ../shared/data.
"""

import argparse
import gzip
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if sys.path[0] == str(Path(__file__).parent):  # the project instead of this folder, whose names others may look for
    sys.path[0] = str(Path(__file__).parent.parent)

import tokenizers
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from benchmarks.token_streams import machine
from mindllm_engine.corpus.byte_level_tokenizer import ByteLevelTokenizer
from mindllm_engine.data.atomic_files import write_atomically
from mindllm_engine.distributed.process_group import World
from mindllm_engine.evaluation.gpt_neo_checkpoint import save_hf_checkpoint
from mindllm_engine.evaluation.lm_eval_adapter import EngineLM
from mindllm_engine.models.gpt_neo import GPTNeoConfig

BAR = 5.0
SHOTS = 5
BATCH_SIZES = (1, 2, 8)
NETWORK = GPTNeoConfig(vocab_size=16000, hidden_size=256, ffn_size=1024, n_layers=8, n_heads=8, max_seq_len=2048)
TINY = GPTNeoConfig(vocab_size=2000, hidden_size=64, ffn_size=128, n_layers=2, n_heads=2, max_seq_len=2048)
# (name, what stands before the answer)
BENCHMARKS = (("mmlu", "Answer:"), ("cmmlu", "答案："))


@dataclass(frozen=True)
class Turn:
    """One call: processor and clock seconds, and the log-likelihoods."""

    processor: float
    clock: float
    answers: list[float]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--toy", action="store_true", help="a tiny network and few questions: does it run at all")
    parser.add_argument("--turns", type=int, default=3, help="turns of each on the first selection; one on the other")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    questions, network = (8, TINY) if arguments.toy else (200, NETWORK)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), network, questions, arguments.turns)
    for row in rows:
        print(f"{row['name']}: ours {row['ours']:.2f} {row['unit']}, {row['peer_name']} {row['peer']:.2f}, ", end="")
        print(f"ratio {row['ratio']:.2f}, bar {row['bar']}, holds {row['holds']}")
    if arguments.json:
        packages = ("torch", "transformers", "lm-eval", "tokenizers")
        content = {"machine": machine(), "versions": {name: version(name) for name in packages}, "rows": rows}
        write_atomically(arguments.json, json.dumps(content, indent=2, ensure_ascii=False).encode())


def measure(folder: Path, network: GPTNeoConfig, questions: int, turns: int) -> list[dict[str, Any]]:
    """All rows."""
    tokenizer = make_tokenizer(folder, network.vocab_size)
    model = network.build(dtype=torch.float32, seed=0).eval()
    save_hf_checkpoint(model, folder)
    ours = EngineLM(model, tokenizer, World(0, 1, 0, torch.device("cpu")))
    whole, spread = (selection(questions, in_order) for in_order in (True, False))
    print(f"{model.num_parameters() / 1e6:.1f} M parameters; {len(whole)} requests a selection", flush=True)
    peers = {size: peer(folder, size) for size in BATCH_SIZES}
    some = whole[:: len(whole) // 4 // 8 * 4][:8]  # eight questions' first candidates
    first_round = {size: turn(peers[size], some).processor for size in BATCH_SIZES}
    best = min(first_round, key=lambda size: first_round[size])
    print("hf by batch size:", {size: round(seconds, 2) for size, seconds in first_round.items()}, flush=True)
    turn(ours.loglikelihood, some)
    rows = []
    for name, requests, count, bar in (
        ("first questions in order", whole, turns, BAR),
        ("spread over all subjects", spread, 1, None),
    ):
        pairs = [(turn(ours.loglikelihood, requests), turn(peers[best], requests)) for _ in range(count)]
        rows += rows_of(f"{questions} five-shot questions, {name}", pairs, f"lm-eval hf, batch size {best}", bar)
    return rows


def rows_of(name: str, pairs: list[tuple[Turn, Turn]], peer_name: str, bar: float | None) -> list[dict[str, Any]]:
    """Processor and clock seconds, and whether the answers are the same."""
    rows = []
    for kind, unit in (("processor", "processor s"), ("clock", "s")):
        ours = statistics.median(getattr(mine, kind) for mine, _ in pairs)
        theirs = statistics.median(getattr(other, kind) for _, other in pairs)
        decides = bar if kind == "processor" else None
        rows.append(row(f"{name}: {kind} time", unit, ours, theirs, peer_name, theirs / ours, decides))
    difference = max(abs(a - b) for mine, other in pairs for a, b in zip(mine.answers, other.answers, strict=True))
    chosen = [[choices(each.answers) for each in pair] for pair in pairs]
    same = sum(a == b for mine, other in chosen for a, b in zip(mine, other, strict=True)) / len(pairs)
    total = len(chosen[0][0])
    rows.append(
        row(f"{name}: same answer as hf", "questions", same, total, peer_name, same / total, 1.0 if bar else None)
    )
    limit = 1e-4
    rows.append(
        row(f"{name}: largest difference", "nats", difference, limit, "bar", limit / max(difference, 1e-12), 1.0)
    )
    return rows


def row(
    name: str, unit: str, ours: float, peer: float, peer_name: str, ratio: float, bar: float | None
) -> dict[str, Any]:
    """One row in the benchmarks' shape (docs/performance.md)."""
    holds = None if bar is None else ratio >= bar
    return {
        "name": name,
        "unit": unit,
        "ours": ours,
        "peer": peer,
        "peer_name": peer_name,
        "ratio": ratio,
        "bar": bar,
        "holds": holds,
    }


def choices(answers: list[float]) -> list[int]:
    """Of each question the candidate that is chosen."""
    return torch.tensor(answers).view(-1, 4).argmax(dim=1).tolist()


def turn(loglikelihood: Callable[[list[Instance]], list[tuple[float, bool]]], requests: list[Instance]) -> Turn:
    """One timed call."""
    processor, clock = time.process_time(), time.perf_counter()
    answers = [value for value, _ in loglikelihood(requests)]
    return Turn(time.process_time() - processor, time.perf_counter() - clock, answers)


def peer(folder: Path, batch_size: int) -> Callable[[list[Instance]], list[tuple[float, bool]]]:
    """lm-eval's own backend on the exported network."""
    backend = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=batch_size, add_bos_token=True)
    return lambda requests: backend.loglikelihood(requests, disable_tqdm=True)


def selection(questions: int, in_order: bool, shots: int = SHOTS) -> list[Instance]:
    """The requests of `questions` questions, half of each benchmark, with lm-eval's prompts of MMLU."""
    requests = []
    for name, answer in BENCHMARKS:
        examples = defaultdict(list)
        for record in read(f"{name}_dev"):
            examples[record["subject"]].append(f"{prompt(record, answer)} {record['answer']}\n\n")
        records = read(f"{name}_test")
        for record in records[: questions // 2] if in_order else records[:: len(records) * 2 // questions]:
            context = "".join(examples[record["subject"]][:shots]) + prompt(record, answer)
            if in_order or len(requests) < questions * 4:
                requests += [(context, f" {letter}") for letter in "ABCD"]
    return [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(requests)]


def prompt(record: dict[str, Any], answer: str) -> str:
    """A question with its choices."""
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", record["choices"], strict=True))
    return f"{record['question'].strip()}\n{listed}\n{answer}"


def read(name: str) -> list[dict[str, Any]]:
    """The records of a file of questions."""
    folder = Path(os.environ.get("MINDLLM_DATA", "../shared/data"))
    with gzip.open(folder / "eval" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(each) for each in file]


def make_tokenizer(folder: Path, vocab_size: int) -> ByteLevelTokenizer:
    """A byte-level tokenizer trained on a part of the questions, as both backends read it."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    texts = (prompt(record, answer) for name, answer in BENCHMARKS for record in read(f"{name}_test")[::30])
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return ByteLevelTokenizer(folder / "tokenizer.json")


if __name__ == "__main__":
    main()
