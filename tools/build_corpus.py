"""Make a clean corpus of raw pages: `python tools/build_corpus.py --config configs/corpus/paper.yaml`."""

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.errors import ConfigError


def main() -> None:
    """Build what is missing, and say where it lies."""
    try:
        from mindllm_engine.corpus.build import BuildConfig, build_corpus
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"building a corpus needs the package {error.name}: install mindllm-engine[corpus]"
        ) from error
    config = parse_arguments(BuildConfig, "From raw pages to clean documents, by the steps of the MindLLM paper.")
    print(f"report: {build_corpus(config)}")


if __name__ == "__main__":
    run_tool(main)
