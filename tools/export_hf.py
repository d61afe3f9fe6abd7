"""A run for Transformers: `python tools/export_hf.py --run runs/demo --out exported/demo`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.data.byte_progress import ByteProgress
from mindllm_engine.evaluation.export.export_run import export_run
from mindllm_engine.training.export import exported_bytes

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass
class ExportArguments:
    """Write a run's network, tokenizer and chat template as a folder that Transformers opens."""

    run: str
    """A run folder, of which the newest checkpoint is taken, or one of its checkpoints."""
    out: str
    """The folder to write; it must be absent or empty."""
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Of the weights: bf16, as the network computes, or fp32, as the optimizer keeps them."""


def main() -> None:
    """Export the run and say what was written."""
    arguments = parse_arguments(ExportArguments, "Write a run as a folder that Transformers opens.")
    run, out, dtype = Path(arguments.run), Path(arguments.out), DTYPES[arguments.dtype]
    with ByteProgress("exporting", exported_bytes(run, dtype)) as progress:
        exported = export_run(run, out, dtype, progress.show)
    print(f"{exported.checkpoint} -> {out}, {exported.parameters:,} parameters in {arguments.dtype}")
    if exported.padding_rows:
        print(f"{exported.padding_rows} rows of the vocabulary are padding: the tokenizer has no tokens for them")


if __name__ == "__main__":
    run_tool(main)
