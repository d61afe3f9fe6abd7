"""Shows an arena's results: a page in Markdown, and a plot of the ratings and of who beats whom."""

import io
from typing import Any

import numpy as np


def to_markdown(results: dict[str, Any], title: str) -> str:
    """The ratings as a table, and beside them what limits them: ties between models, bias, disagreement, failures."""
    judged = results["judgements"]
    lines = [
        f"# {title}",
        "",
        f"{results['prompts_ranked']} prompts, {judged['ranked']} rankings of {judged['asked']} asked for "
        f"({judged['failed']} failed, {judged['asked_again']} asked for twice). Intervals are of 95 %, from a "
        "bootstrap over prompts.",
        "",
        "| model | Bradley-Terry | interval | win rate | Elo, K = 32 | Elo over orders |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in results["ratings"]:
        low, high = row["interval"]
        lines.append(
            f"| {_cell(row['name'])} | {row['bradley_terry']:.0f} | {low:.0f} to {high:.0f} | {row['win_rate']:.1%} "
            f"| {row['elo']:.0f} | {row['elo_mean']:.0f} ± {row['elo_sd']:.0f} |"
        )
    groups = [" = ".join(_cell(name) for name in group) for group in results["groups"] if len(group) > 1]
    lines += ["", f"Cannot be told apart: {'; '.join(groups) if groups else 'no two models'}.", ""]
    lines += ["| place in the list | win rate | interval | biased |", "|---:|---:|---:|---|"]
    for place in results["places"]:
        low, high = place["interval"]
        mark = "yes" if place["biased"] else "no"
        lines.append(f"| {place['place']} | {place['win_rate']:.1%} | {low:.1%} to {high:.1%} | {mark} |")
    rotations = results["rotations"]
    if rotations["pairs"]:
        lines += [
            "",
            f"Of two rankings of the same answers in rotated orders, {rotations['same']:.1%} of the pairs come out the "
            f"same, {rotations['opposite']:.1%} with the other winner, {rotations['tie_in_one']:.1%} as a tie in one "
            "alone.",
        ]
    lines += ["", *(f"**Note:** {warning}.\n" for warning in results["warnings"])]
    return "\n".join(lines).rstrip() + "\n"


def plot(results: dict[str, Any]) -> bytes:
    """Ratings with their intervals, and the matrix of win rates, as PNG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ratings = results["ratings"]
    names = [row["name"] for row in ratings]
    order = [results["models"].index(name) for name in names]
    figure = Figure(figsize=(11, 1.8 + 0.5 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    points = np.array([row["bradley_terry"] for row in ratings])
    bounds = np.array([row["interval"] for row in ratings]).T
    # A percentile interval need not hold its estimate, where prompts are few.
    lengths = np.maximum([points - bounds[0], bounds[1] - points], 0)
    rows = np.arange(len(names))
    left.errorbar(points, rows, xerr=lengths, fmt="o", capsize=4, label="Bradley-Terry, 95 %")
    mean, spread = (np.array([row[key] for row in ratings]) for key in ("elo_mean", "elo_sd"))
    left.errorbar(mean, rows + 0.2, xerr=spread, fmt="x", alpha=0.5, label="Elo, K = 32, ± sd over orders")
    left.set(yticks=rows, yticklabels=names, xlabel="rating", title="Ratings")
    left.invert_yaxis()
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    shares = np.array(results["win_rates"])[np.ix_(order, order)]
    np.fill_diagonal(shares, np.nan)
    right.imshow(shares, vmin=0, vmax=1, cmap=matplotlib.colormaps["RdYlGn"], aspect="auto")
    for row, column in zip(*np.nonzero(~np.isnan(shares)), strict=True):
        share = shares[row, column]
        color = "white" if abs(share - 0.5) > 0.4 else "black"  # the map is dark at its ends
        right.text(column, row, f"{share:.0%}", ha="center", va="center", fontsize=9, color=color)
    right.set(
        xticks=rows, xticklabels=names, yticks=rows, yticklabels=names, title="How often the row beats the column"
    )
    right.tick_params(axis="x", labelrotation=30)
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png")
    return file.getvalue()


def _cell(name: str) -> str:
    return " ".join(name.replace("|", "\\|").split())
