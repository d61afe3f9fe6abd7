"""Weights alone, in one safetensors file: `python tools/export_weights.py --run runs/demo --out demo.safetensors`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.data.byte_progress import ByteProgress
from mindllm_engine.training.export import export_weights, exported_bytes


@dataclass
class ExportArguments:
    """Write the parameters of a checkpoint, in their shapes, to one safetensors file."""

    run: str
    """A run folder, of which the newest checkpoint is taken, or a checkpoint."""
    out: str
    """The file to write."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """bf16, as the network computes, or fp32, as the optimizer keeps its master weights."""


def main() -> None:
    """Export the weights and say where they are."""
    arguments = parse_arguments(ExportArguments, "Write the weights of a checkpoint to one safetensors file.")
    dtype = torch.bfloat16 if arguments.dtype == "bf16" else torch.float32
    run, out = Path(arguments.run), Path(arguments.out)
    with ByteProgress("exporting", exported_bytes(run, dtype)) as progress:
        checkpoint = export_weights(run, out, dtype, progress.show)
    print(f"{checkpoint} -> {out}, {out.stat().st_size / 1e6:,.1f} MB")


if __name__ == "__main__":
    run_tool(main)
