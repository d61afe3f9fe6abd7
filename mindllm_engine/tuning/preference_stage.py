"""Direct preference optimisation (arXiv 2305.18290) as a stage of the one training loop.

A pair's loss is -log sigmoid(beta h), h = log p(chosen) / p_ref(chosen) - log p(rejected) / p_ref(rejected) (equation
7); with label smoothing e, -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h). The mean is over the pairs of the
global batch.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mindllm_engine.corpus.prepare import expand_path
from mindllm_engine.data.atomic_files import write_atomically
from mindllm_engine.data.loader import IGNORED, Batch, Loader, PendingBatch
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.distributed.process_group import World
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.models import Network
from mindllm_engine.training.checkpoint import identity, newest_checkpoint
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.setup import DTYPES, Data
from mindllm_engine.training.stage import Losses
from mindllm_engine.tuning.reference_scores import ReferenceScores, reference_scores, sequence_key
from mindllm_engine.tuning.tuning_stage import TuningStage, base_checkpoint

# In the run folder: the identity of the reference's checkpoint.
REFERENCE_FILE = "reference.txt"


@dataclass(frozen=True)
class PairBatch(Batch):
    """A micro-batch of whole pairs.

    Attributes:
        answers: (T,) int64, 2 p for tokens of the chosen answer of pair p (and its prompt), 2 p + 1 for those of the
            rejected one; 2 P, P pairs in all, for padding.
        reference: (P, 2) fp32, log-probabilities of the chosen and the rejected answer under the reference network.
        pair_sources: (P,) int64, the source of each pair.
    """

    answers: Tensor
    reference: Tensor
    pair_sources: Tensor

    def to(self, device: torch.device) -> "PairBatch":
        """The batch on a device."""
        if device.type == "cpu":
            return self
        names = ("answers", "reference", "pair_sources")
        own = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return PairBatch(**vars(super().to(device)), **own)


def with_pairs(batch: Batch, scores: ReferenceScores) -> PairBatch:
    """A micro-batch of whole pairs, found by the borders of its sequences.

    Raises:
        DataError: a pair has been torn apart, or has no reference.
    """
    tokens, targets, offsets = batch.tokens.numpy(), batch.targets.numpy(), batch.cu_seqlens.tolist()
    keys: list[int] = []
    starts: list[int] = []
    answers = np.full(len(tokens), -1, np.int64)
    for begin, end in itertools.pairwise(offsets):
        learnt = targets[begin:end] != IGNORED
        if not learnt.any():
            continue  # padding
        answers[begin:end] = len(keys)
        starts.append(begin)
        inner = end if learnt[-1] else end - 1  # the end of the answer may be its sample's last target
        keys.append(sequence_key(tokens[begin:inner], learnt[: inner - begin]))
    if len(keys) % 2:
        raise DataError("a pair of answers was torn apart; tune with whole records (data.packing best_fit)")
    answers[answers < 0] = len(keys)
    reference = scores.find(np.array(keys, np.uint64)).reshape(-1, 2)
    sources = batch.source_ids[torch.tensor(starts[::2], dtype=torch.int64)]
    return PairBatch(
        **vars(batch),
        answers=torch.from_numpy(answers),
        reference=torch.from_numpy(reference).float(),
        pair_sources=sources,
    )


class PairLoader(Loader):
    """A loader of pairs with their references. Set `scores` before the first batch is asked for."""

    scores: ReferenceScores

    def _finish(self, batch: PendingBatch) -> Batch:
        return with_pairs(super()._finish(batch), self.scores)


def dpo_losses(log_probs: Tensor, reference: Tensor, beta: float, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Losses (P,) and rewards (P, 2), beta * (log p - log p_ref), of pairs of log-probabilities (P, 2), chosen and
    rejected."""
    rewards = beta * (log_probs - reference)
    margins = rewards[:, 0] - rewards[:, 1]
    losses = -(1 - label_smoothing) * F.logsigmoid(margins) - label_smoothing * F.logsigmoid(-margins)
    return losses, rewards


class PreferenceStage(TuningStage):
    """DPO of all weights or of LoRA's additions, against the network of `run.init_from`."""

    counts = "pair"
    extras = ("accuracy", "margin", "reward/chosen", "reward/rejected")

    def open_loader(self, config: RunConfig, data: Data, world: World) -> Loader:
        """See `Stage.open_loader`. Makes the reference's scores, unless their file is there.

        Raises:
            ConfigError: a remote source, whose masks cannot be read; or the run has begun with another reference.
        """
        base = base_checkpoint(config)
        self.reference = identity(base)
        begun_with = Path(config.run.dir) / REFERENCE_FILE
        resumed = newest_checkpoint(Path(config.run.dir) / "checkpoints") is not None
        if resumed and begun_with.exists() and begun_with.read_text() != self.reference:
            raise ConfigError(
                f"run.init_from: {base} is not the reference that this run began with ({begun_with}); name that "
                "checkpoint, or choose another run.dir"
            )
        files = [file for file in (*data.sources, *data.heldout) if isinstance(file, TokenFile)]
        if len(files) < len(data.sources) + sum(file is not None for file in data.heldout):
            raise ConfigError("tuning.dpo: pairs must lie on this machine")
        folder = Path(expand_path(self.config.tuning.dir))
        dtype = DTYPES[config.train.precision]
        self.scores = reference_scores(files, base, dtype, folder, world)
        vocab_size = config.model.selected.vocab_size
        loader = PairLoader(data.plan, data.sources, vocab_size, world.rank, world.world_size, config.data.verify)
        loader.scores = self.scores
        return loader

    def write_run_files(self, folder: Path) -> None:
        """See `Stage.write_run_files`."""
        super().write_run_files(folder)
        write_atomically(folder / REFERENCE_FILE, self.reference.encode())

    def heldout_batches(self, config: RunConfig, data: Data, world: World) -> list[Batch]:
        """See `Stage.heldout_batches`."""
        return [with_pairs(batch, self.scores) for batch in super().heldout_batches(config, data, world)]

    def losses(self, model: Network, batch: Batch, grad_scale: float | None) -> Losses:
        """See `Stage.losses`: an entry a pair. Tokens' upstream gradients differ, so none is promised."""
        assert isinstance(batch, PairBatch)
        dpo = self.config.tuning.dpo
        assert dpo is not None
        pairs = len(batch.reference)
        nats = model(batch.tokens, batch.positions, batch.cu_seqlens, targets=batch.targets)
        # Row by row: index_add would be atomic on a GPU, and each time a little different.
        mine = batch.answers == torch.arange(2 * pairs, device=nats.device)[:, None]  # (2 P, T)
        sums = torch.where(mine, nats, 0).sum(dim=1)
        values, rewards = dpo_losses(-sums.view(pairs, 2), batch.reference, dpo.beta, dpo.label_smoothing)
        margins = rewards[:, 0] - rewards[:, 1]
        extras = (margins > 0, margins, rewards[:, 0], rewards[:, 1])
        counted = torch.ones_like(batch.pair_sources, dtype=torch.bool)
        return Losses(values, counted, batch.pair_sources, dict(zip(self.extras, extras, strict=True)))
