"""How much faster are instructions scored in packs than in padded batches of 64?

    python benchmarks/instruction_scoring.py --run RUN --records alpaca_en.jsonl.gz alpaca_zh.jsonl.gz --json FILE

Losses of every token of the same records under the same weights of a GPT-Neo run: `training.scoring.token_losses`
beside Transformers' GPTNeoForCausalLM on right-padded batches, of random records and, a second row, of records sorted
by length. Tokens are made beforehand for both. The work is cut into slices which take turns, so that other work on the
machine hits all of them; wall and CPU seconds are summed. Logits of the padding are not turned into losses.

What bounds us: the matrix products, for whose FLOP/s a bare product of the feed-forward's shape is the ceiling.
"""

import argparse
import contextlib
import ctypes
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

if sys.path[0] == str(Path(__file__).parent):  # the project instead of this folder, whose names others may look for
    sys.path[0] = str(Path(__file__).parent.parent)

from benchmarks.peers import versions
from mindllm_engine.corpus.open_tokenizer import open_tokenizer
from mindllm_engine.distributed.process_group import start_processes
from mindllm_engine.evaluation.gpt_neo_checkpoint import save_hf_checkpoint
from mindllm_engine.models.gpt_neo import GPTNeo
from mindllm_engine.training.scoring import PACK_TOKENS, packs_of, token_losses
from mindllm_engine.training.weights import TOKENIZER_FILE, load_model
from mindllm_engine.tuning.entropy import PlainText
from mindllm_engine.tuning.records import Record, read_records

BATCH = 64
BAR = 2.5
SLICES = 20
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# The sums of a record's losses, ours and theirs, differ by no more than this share of them.
AGREEMENT = {"fp32": 1e-5, "bf16": 2e-2}

Ids = npt.NDArray[np.int32]
Group = list[int]


class Contender:
    """One way to score, its groups of sequences, the time they took, and the mean loss of each sequence."""

    def __init__(self, name: str, groups: list[Group], score: Callable[[Group], None]) -> None:
        self.name, self.groups, self.score = name, groups, score
        self.wall = self.cpu = 0.0

    def run_slice(self, number: int) -> None:
        first, last = (len(self.groups) * place // SLICES for place in (number, number + 1))
        wall, cpu = time.perf_counter(), time.process_time()
        for group in self.groups[first:last]:
            self.score(group)
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu
        return_freed_memory()


def return_freed_memory() -> None:
    """To the system, or shapes of all contenders pile up in the heap: 22 GiB after half of the slices."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def read_sequences(run: Path, paths: list[Path], count: int, max_tokens: int) -> list[Ids]:
    """Records of all files, drawn at random, as whole sequences; those too long are cut."""
    tokenizer = open_tokenizer(run / TOKENIZER_FILE)
    template = PlainText(tokenizer)
    records = [record for path in paths for record in read_records(path) if isinstance(record, Record)]
    chosen = random.Random(0).sample(records, min(count, len(records)))
    return [
        np.array((template.prompt(record.messages[:-1]) + tokenizer.encode(record.response))[:max_tokens], np.int32)
        for record in chosen
    ]


def padded_score(model: Any, sequences: list[Ids], means: npt.NDArray[np.float64], group: Group) -> None:
    """Transformers' way: logits of a right-padded batch, and the losses of its real tokens, a record at a time: of all
    at once they take the fp32 logits of the whole batch, and longer (by a sixth, on 384 records by hand)."""
    lengths = torch.tensor([len(sequences[number]) for number in group])
    ids = torch.zeros(len(group), int(lengths.max()), dtype=torch.int64)
    for row, number in enumerate(group):
        ids[row, : len(sequences[number])] = torch.from_numpy(sequences[number])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    with torch.inference_mode():
        logits = model(ids, attention_mask=mask, use_cache=False).logits
        for row, number in enumerate(group):
            end = int(lengths[row])
            means[number] = torch.nn.functional.cross_entropy(logits[row, : end - 1].float(), ids[row, 1:end]).item()


def packed_score(model: GPTNeo, sequences: list[Ids], means: npt.NDArray[np.float64], group: Group) -> None:
    for number, losses in token_losses(model, [sequences[number] for number in group], PACK_TOKENS):
        means[group[number]] = losses.astype(np.float64).mean()


def cut(order: list[int]) -> list[Group]:
    return [order[first : first + BATCH] for first in range(0, len(order), BATCH)]


def product_rate(model: GPTNeo) -> tuple[Callable[[], None], Callable[[], float]]:
    """A call that multiplies as the feed-forward does, and the FLOP/s of all calls so far."""
    weight = model.layers[0].ffn_in
    assert isinstance(weight, torch.Tensor)
    x = torch.randn(4096, weight.shape[1], dtype=weight.dtype)
    spent = [0.0, 0]

    def multiply() -> None:
        begin = time.perf_counter()
        with torch.no_grad():
            torch.nn.functional.linear(x, weight)
        spent[0] += time.perf_counter() - begin
        spent[1] += 2 * x.shape[0] * weight.numel()

    return multiply, lambda: spent[1] / spent[0]


def rows(run: Path, sequences: list[Ids], precision: str, folder: Path) -> Iterator[dict[str, Any]]:
    from transformers import GPTNeoForCausalLM

    network, _ = load_model(run, torch.device("cpu"))
    assert isinstance(network, GPTNeo)
    save_hf_checkpoint(network, folder)
    dtype = PRECISIONS[precision]
    network.to(dtype)
    peer = GPTNeoForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    means = {name: np.full(len(sequences), np.nan) for name in ("ours", "random", "sorted")}
    lengths = [len(sequence) for sequence in sequences]
    order = list(range(len(sequences)))
    by_length = sorted(order, key=lambda number: -lengths[number])
    contenders = [
        Contender(
            "ours", list(packs_of(lengths, PACK_TOKENS)), lambda g: packed_score(network, sequences, means["ours"], g)
        ),
        Contender("random", cut(order), lambda g: padded_score(peer, sequences, means["random"], g)),
        Contender("sorted", cut(by_length), lambda g: padded_score(peer, sequences, means["sorted"], g)),
    ]
    for contender in contenders:
        contender.score(by_length[-8:])  # warm
    multiply, flops_a_second = product_rate(network)
    for number in range(SLICES):
        multiply()
        for contender in contenders:
            contender.run_slice(number)
        print(f"{precision}: slice {number + 1} of {SLICES}", file=sys.stderr, flush=True)
    ours = contenders[0]
    for contender in contenders[1:]:
        apart = float(np.abs(means["ours"] / means[contender.name] - 1).max())
        assert apart < AGREEMENT[precision], f"losses differ by {apart:.2g}"
        padded = sum(len(group) * max(lengths[number] for number in group) for group in contender.groups)
        bar = BAR if contender.name == "random" else None
        ratio = contender.wall / ours.wall
        yield {
            "name": f"{len(sequences):,} instructions, {precision}, beside {contender.name} batches of {BATCH}",
            "unit": "instructions/s",
            "ours": len(sequences) / ours.wall,
            "peer": len(sequences) / contender.wall,
            "peer_name": f"Transformers GPTNeoForCausalLM ({peer.config._attn_implementation})",
            "ratio": ratio,
            "bar": bar,
            "holds": None if bar is None else ratio >= bar,
            "reason": None,
            "ratio_of_cpu_seconds": contender.cpu / ours.cpu,
            "useful_tokens_of_the_peer": sum(lengths) / padded,
            "largest_relative_difference_of_a_mean_loss": apart,
        }
    # A forward is a third of a training step's operations.
    flops = sum(network.flops_per_token(length) / 3 * length for length in lengths)
    rate = flops / ours.wall
    yield {
        "name": f"operations of packed scoring, {precision}, beside a bare product", "unit": "GFLOP/s",
        "ours": rate / 1e9, "peer": flops_a_second() / 1e9, "peer_name": "torch, (4096, D) times the feed-forward",
        "ratio": rate / flops_a_second(), "bar": None, "holds": None, "reason": None,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder of a GPT-Neo with its tokenizer")
    parser.add_argument("--records", type=Path, nargs="+", required=True, help="files of instruction data")
    parser.add_argument("--count", type=int, default=10_000, help="records to score, drawn at random")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="default: both")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    arguments = parser.parse_args()
    start_processes()  # as training and scoring run: freed memory stays in the process, for both sides
    model, config = load_model(arguments.run, torch.device("cpu"))
    sequences = read_sequences(arguments.run, arguments.records, arguments.count, config.selected.max_seq_len)
    document: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version()} | dict(versions()),
        "command": f"benchmarks/instruction_scoring.py --count {arguments.count}",
        "network": f"GPT-Neo of {model.num_parameters():,} parameters",
        "tokens": sum(map(len, sequences)),
        "rows": [],
    }
    for precision in arguments.precision or PRECISIONS:
        with tempfile.TemporaryDirectory(prefix="scoring_") as folder:
            for row in rows(arguments.run, sequences, precision, Path(folder)):
                print(json.dumps(row), flush=True)
                document["rows"].append(row)
                if arguments.json:
                    arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if any(row["holds"] is False for row in document["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
