"""Does an exported network answer as the run it comes from? Per question, through lm-eval's own backend.

    python benchmarks/exported_evaluation.py --run runs/stages/gpt_neo_tuned [--run ...] [--json FILE]

Each run is exported by `tools/export_hf.py --dtype fp32` into a new folder. 500 questions of MMLU and CMMLU, about half
each, spread over all subjects, without examples: the log-likelihood of every candidate through lm-eval's `hf` backend
on the export, beside that of our adapter on the run, both fp32, each with the tokenizer it finds. The bar is 1e-4 nats.
Questions come from $MINDLLM_DATA or ../shared/data.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

if sys.path[0] == str(Path(__file__).parent):  # the project instead of this folder, whose names others may look for
    sys.path[0] = str(Path(__file__).parent.parent)

import torch
from lm_eval.models.huggingface import HFLM

from benchmarks.evaluation import choices, row, selection
from benchmarks.token_streams import machine
from mindllm_engine.data.atomic_files import write_atomically
from mindllm_engine.distributed.process_group import World
from mindllm_engine.evaluation.lm_eval_adapter import EngineLM
from mindllm_engine.training.weights import load_model_for_inference

ROOT = Path(__file__).resolve().parent.parent
BAR = 1e-4


def compare(run: Path, questions: int, folder: Path) -> list[dict[str, Any]]:
    """The rows of one run."""
    export = [sys.executable, str(ROOT / "tools" / "export_hf.py"), "--run", str(run), "--out", str(folder)]
    export += ["--dtype", "fp32"]
    subprocess.run(export, check=True, stdout=subprocess.DEVNULL)
    model, tokenizer = load_model_for_inference(str(run))
    ours = EngineLM(model.float(), tokenizer, World(0, 1, 0, torch.device("cpu")))
    peer = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=8, trust_remote_code=True)
    requests = selection(questions, in_order=False, shots=0)
    mine = [value for value, _ in ours.loglikelihood(requests)]
    other = [value for value, _ in peer.loglikelihood(requests)]
    difference = max(abs(a - b) for a, b in zip(mine, other, strict=True))
    same = sum(a == b for a, b in zip(choices(mine), choices(other), strict=True))
    name, peer_name = f"{type(model).__name__}, {len(requests) // 4} questions", "lm-eval hf on the export"
    return [
        row(f"{name}: largest difference", "nats", difference, BAR, "bar", BAR / max(difference, 1e-12), 1.0),
        row(f"{name}: same choice", "questions", same, len(requests) // 4, peer_name, same * 4 / len(requests), None),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, action="append", required=True, help="run folder; may be given again")
    parser.add_argument("--questions", type=int, default=500, help="about half of MMLU, half of CMMLU")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    arguments = parser.parse_args()
    rows = []
    for run in arguments.run:
        with tempfile.TemporaryDirectory(prefix="exported_") as folder:
            rows += compare(run, arguments.questions, Path(folder))
        for each in rows[-2:]:
            print(f"{each['name']}: {each['ours']:.3g} {each['unit']}, beside {each['peer']:.3g}", flush=True)
    if arguments.json:
        packages = {name: version(name) for name in ("torch", "transformers", "lm-eval", "tokenizers")}
        content = {"machine": machine(), "versions": packages, "rows": rows}
        write_atomically(arguments.json, json.dumps(content, indent=2).encode())
    return 1 if any(each["holds"] is False for each in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
