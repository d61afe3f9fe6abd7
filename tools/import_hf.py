"""A Transformers checkpoint as a run: `python tools/import_hf.py --hf gpt-neo-1.3B --out runs/gpt_neo_1.3b`."""

from dataclasses import dataclass
from pathlib import Path

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.evaluation.export.import_hf import import_checkpoint


@dataclass
class ImportArguments:
    """Write a Transformers checkpoint as a run folder: any GPT-Neo, or what tools/export_hf.py wrote."""

    hf: str
    """The folder with config.json, weights (safetensors or pytorch_model.bin) and tokenizer."""
    out: str
    """The run folder to write; it must be absent or empty."""


def main() -> None:
    """Import the checkpoint and say what to do with it."""
    arguments = parse_arguments(ImportArguments, "Write a Transformers checkpoint as a run folder.")
    config = import_checkpoint(Path(arguments.hf), Path(arguments.out))
    parameters = config.build(device="meta").num_parameters()
    print(f"{arguments.hf} -> {arguments.out}, {parameters:,} parameters; train on from it with run.init_from")


if __name__ == "__main__":
    run_tool(main)
