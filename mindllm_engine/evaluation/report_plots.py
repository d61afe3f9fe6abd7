"""The pictures of a report, as PNG: losses and speed of one run or several over the tokens they have read."""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

from mindllm_engine.evaluation.run_facts import RunFacts


def losses_picture(runs: Sequence[RunFacts]) -> bytes:
    """Training loss of all runs, and held-out bits per byte (or losses): of each source where there is one run, else
    of all."""
    return _picture(2, lambda axes: _draw_losses(axes, runs))


def speed_picture(runs: Sequence[RunFacts]) -> bytes:
    """Tokens a second and the gradient's norm of all runs."""
    return _picture(2, lambda axes: _draw_speed(axes, runs))


def _draw_losses(axes: Any, runs: Sequence[RunFacts]) -> None:
    left, right = axes
    in_bits = any("heldout_bpb" in record for run in runs for record in run.records)
    key = "heldout_bpb" if in_bits else "heldout_loss"  # of preferences, which have no bytes
    for run in runs:
        left.plot(*_series(run, "loss"), linewidth=0.8, label=run.name)
        if len(runs) > 1:
            right.plot(*_series(run, key), marker="o", markersize=3, label=run.name)
    if len(runs) == 1:
        for number, source in enumerate(runs[0].sources):
            style = "-" if number < 10 else "--"
            tokens, bits = _series(runs[0], f"{key}/{source}")
            if tokens:
                right.plot(tokens, bits, marker="o", markersize=3, linewidth=1, linestyle=style, label=source)
        right.plot(*_series(runs[0], key), color="black", linewidth=2, label="all")
    left.set(title="Training loss", xlabel="tokens", ylabel="nats a token")
    right.set(title="Held-out text", xlabel="tokens", ylabel="bits per byte" if in_bits else "loss", yscale="log")
    _plain_numbers(right)
    if len(runs) > 1:
        left.legend(fontsize=7)
    if right.lines:
        right.legend(fontsize=7, ncol=2)


def _draw_speed(axes: Any, runs: Sequence[RunFacts]) -> None:
    left, right = axes
    for run in runs:
        left.plot(*_series(run, "tokens_per_second"), linewidth=0.8, label=run.name)
        right.plot(*_series(run, "grad_norm"), linewidth=0.8, label=run.name)
    left.set(title="Speed", xlabel="tokens", ylabel="tokens a second", ylim=(0, None))
    right.set(title="Gradient before clipping", xlabel="tokens", ylabel="norm", yscale="log")
    if len(runs) > 1:
        left.legend(fontsize=7)


def _series(run: RunFacts, key: str) -> tuple[list[int], list[float]]:
    """(tokens, values) of a run's records; what is not finite is left out."""
    pairs = [(record["tokens"], record[key]) for record in run.records if record.get(key) is not None]
    finite = [(tokens, value) for tokens, value in pairs if math.isfinite(value)]
    return [tokens for tokens, _ in finite], [value for _, value in finite]


def _plain_numbers(axes: Any) -> None:
    from matplotlib.ticker import ScalarFormatter

    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())


def _picture(columns: int, draw: Callable[[Any], None]) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(6.5 * columns, 5), layout="constrained")
    draw(axes)
    for part in axes:
        part.grid(alpha=0.3)
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png")
    pyplot.close(figure)
    return file.getvalue()
