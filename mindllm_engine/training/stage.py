"""What a stage of training does in its own way. One loop serves all of them: pre-training, transfer and supervised
tuning are `Stage` as it stands (tuning's token files carry masks of what is supervised), LoRA and preference tuning
override a part."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mindllm_engine.data.loader import IGNORED, Batch, Loader, heldout_batches
from mindllm_engine.models import Network

if TYPE_CHECKING:
    from mindllm_engine.distributed.process_group import World
    from mindllm_engine.training.config import RunConfig
    from mindllm_engine.training.setup import Data


@dataclass(frozen=True)
class Losses:
    """How a micro-batch is scored, one entry for whatever the stage counts: tokens, or pairs of answers.

    Attributes:
        values: (n,) fp32, with gradients; 0 where nothing is counted.
        counted: (n,) bool, which entries the mean is over.
        source_ids: (n,) int64, the source of each.
        extras: (n,) each, what else is reported, as means over what is counted; named as in `Stage.extras`.
    """

    values: Tensor
    counted: Tensor
    source_ids: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)


class Stage:
    """Next-token prediction on the samples of the plan.

    Attributes:
        counts: what losses are counted by. Only losses of tokens have bits per byte.
        extras: names of what else `losses` reports.
    """

    counts: str = "token"
    extras: tuple[str, ...] = ()

    def adapters(self, config: "RunConfig") -> dict[str, Any]:
        """What a checkpoint says of weights that it leaves out, because they are frozen: `base`, the checkpoint that
        has them, its `base_hash`, and whatever else must be equal for a run to go on. Empty where it holds all."""
        return {}

    def prepare_model(self, model: Network, config: "RunConfig") -> None:
        """Change the network, in place, once its initial weights are there and before an optimizer is made."""

    def open_loader(self, config: "RunConfig", data: "Data", world: "World") -> Loader:
        """What gives the micro-batches."""
        vocab_size = config.model.selected.vocab_size
        return Loader(data.plan, data.sources, vocab_size, world.rank, world.world_size, config.data.verify)

    def heldout_batches(self, config: "RunConfig", data: "Data", world: "World") -> list[Batch]:
        """Every `world_size`-th held-out batch, which this rank evaluates."""
        batches: list[Batch] = []
        for source_id, file in enumerate(data.heldout):
            if file is not None and file.tokens > 1:
                file.verify_ids(config.model.selected.vocab_size)
                limit = config.train.eval_tokens or file.tokens
                batches += heldout_batches(file, source_id, config.data.seq_len, config.train.micro_batch_size, limit)
        return batches[world.rank :: world.world_size]

    def write_run_files(self, folder: Path) -> None:
        """Write, on rank 0, what else tells of the run beside config.yaml. Raises DataError."""

    def losses(self, model: Network, batch: Batch, grad_scale: float | None) -> Losses:
        """Score a micro-batch. `grad_scale` promises what the upstream gradient of every value will be (None: no
        promise, or no backward)."""
        values = model(batch.tokens, batch.positions, batch.cu_seqlens, targets=batch.targets, grad_scale=grad_scale)
        return Losses(values, batch.targets != IGNORED, batch.source_ids)
