"""Write the sample corpus: `python tools/make_sample_corpus.py --out DIR --seed N`."""

from pathlib import Path

from jsonargparse import auto_cli

from mindllm_engine.command_line import run_tool
from mindllm_engine.corpus.sample import write_sample_corpus


def make(out: Path, seed: int = 0) -> None:
    """Write one JSON-lines file a source and print their sizes.

    Args:
        out: the folder to write to, made if it does not exist.
        seed: the same seed gives the same text.
    """
    sources = write_sample_corpus(out, seed)
    for name, source in sources.items():
        print(f"{name:18} {source.lang}  {source.category:13} {source.documents:6} documents {source.bytes:9,} bytes")
    print(f"{sum(source.bytes for source in sources.values()):,} bytes of text in {out}")


if __name__ == "__main__":
    run_tool(lambda: auto_cli(make, as_positional=False))
