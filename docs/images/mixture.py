"""Makes the pictures in this folder: `python docs/images/mixture.py`.

The paper's mixture (configs/data/mindllm_mixture.yaml) over the 503 billion tokens of the 3B network, in each of the
three orders. A plan is arithmetic on the sizes of its sources, so no token file is needed: 18 sources of 40 billion
tokens are made up.
"""

from dataclasses import replace
from pathlib import Path

from mindllm_engine.command_line import read_yaml
from mindllm_engine.data.plan import BlockConfig, Plan, SourceFacts
from mindllm_engine.data.plan_course import follow
from mindllm_engine.data.plan_picture import draw

HERE = Path(__file__).parent
MIXTURE = HERE.parents[1] / "configs" / "data" / "mindllm_mixture.yaml"
SEQ_LEN = 2048
TOKENS = 80_000 * 3072 * SEQ_LEN  # steps, samples a step (configs/mindllm_3b.yaml)
SOURCE_TOKENS = 40_000_000_000


def main() -> None:
    """Write mixture_shuffled.png, mixture_blocked.png and mixture_chunked.png beside this file."""
    data = read_yaml(MIXTURE)["data"]
    sources = [
        SourceFacts(name, *name.split("_"), SOURCE_TOKENS, SOURCE_TOKENS // 1000, "made up") for name in data["sources"]
    ]
    mixture = replace(BlockConfig(**data["blocks"][0]), tokens=TOKENS)
    for order in ("shuffled", "blocked", "chunked"):
        plan = Plan(sources, [replace(mixture, order=order)], SEQ_LEN, seed=1, samples_needed=0)
        draw(plan, follow(plan), HERE / f"mixture_{order}.png")


if __name__ == "__main__":
    main()
