"""What there is to see of a run's data, in numbers: statistics of its sources, some samples, and its mixture over time.

data/inspection_text.py prints it, and data/plan_picture.py draws the mixture.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mindllm_engine.data.length_statistics import LengthStatistics, measure_lengths
from mindllm_engine.data.loader import Loader
from mindllm_engine.data.manifest import Manifest
from mindllm_engine.data.plan import Plan
from mindllm_engine.data.plan_course import PlanCourse, follow
from mindllm_engine.data.remote import Source
from mindllm_engine.data.sample_view import Piece, SampleView, look_at

Decode = Callable[[Iterable[int]], str]
"""The text of token ids."""


@dataclass(frozen=True)
class SourceView:
    """A source of a plan.

    Attributes:
        tokens_per_byte: of the text that it was made from.
        epochs: how often the whole plan reads it.
        efficiency: seq_len -> share of the places of an epoch's samples that hold tokens (best-fit packing only).
    """

    name: str
    language: str
    category: str
    tokens_per_byte: float
    epochs: float
    efficiency: dict[int, float]
    lengths: LengthStatistics


@dataclass(frozen=True, eq=False)
class Inspection:
    """A plan, looked at."""

    plan: Plan
    sources: list[SourceView]
    samples: list[SampleView]
    course: PlanCourse


def inspect(loader: Loader, files: Sequence[Source], samples: Sequence[int]) -> Inspection:
    """Look at the plan of a loader, whose sources are `files`, and at these global samples of it.

    Raises:
        DataError: a file is damaged, cut short or lost, or holds an id outside the vocabulary.
    """
    plan = loader.plan
    seq_lens = {block.seq_len for block in plan.blocks}
    sources = [
        _view_source(plan, number, file.manifest, measure_lengths(file, seq_lens)) for number, file in enumerate(files)
    ]
    return Inspection(plan, sources, [look_at(loader, files, sample) for sample in samples], follow(plan))


def _view_source(plan: Plan, number: int, manifest: Manifest, lengths: LengthStatistics) -> SourceView:
    facts = plan.sources[number]
    places = {seq_len: samples * (seq_len + 1) for seq_len, samples in facts.epoch_samples.items()}
    return SourceView(
        name=facts.name,
        language=facts.language,
        category=facts.category,
        tokens_per_byte=manifest.tokens / max(1, manifest.text_bytes),
        epochs=float(sum(plan.epochs_in(block, number) for block in plan.blocks)),
        efficiency={seq_len: lengths.packed[seq_len] / count for seq_len, count in places.items() if count},
        lengths=lengths,
    )


def describe(inspection: Inspection, decode: Decode | None) -> dict[str, Any]:
    """Everything as JSON takes it, the samples with their whole text, or their ids where nothing decodes them."""
    plan, course = inspection.plan, inspection.course
    return {
        "sources": [asdict(source) for source in inspection.sources],
        "samples": [_describe_sample(view, plan, decode) for view in inspection.samples],
        "course": {
            "edges": course.edges.tolist(),
            "blocks": course.blocks,
            "shares": {source.name: course.shares[:, number].tolist() for number, source in enumerate(plan.sources)},
        },
    }


def _describe_sample(view: SampleView, plan: Plan, decode: Decode | None) -> dict[str, Any]:
    facts = plan.sources[view.source]

    def content(piece: Piece) -> dict[str, Any]:
        return {"ids": piece.ids.tolist()} if decode is None else {"text": decode(piece.ids)}

    return {
        "sample": view.sample,
        "block": view.block,
        "source": facts.name,
        "language": facts.language,
        "category": facts.category,
        "seq_len": view.seq_len,
        "padding": view.padding,
        "ignored": view.ignored,
        "pieces": [
            {name: getattr(piece, name) for name in ("document", "begin", "end", "length", "targets")} | content(piece)
            for piece in view.pieces
        ],
    }
