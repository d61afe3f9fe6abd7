"""The report of a choice of instruction data: lengths and entropies of each cluster and choice, as Markdown and JSON,
and the histogram of entropies with the borders of the clusters and the recommended bands.

The columns of lengths are those of the paper's statistics of instruction data (arXiv 2310.15777, Tables 17, 20 and 21):
records, and the lengths of instructions and answers; here in tokens and in characters.
"""

from collections import Counter
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from mindllm_engine.data.atomic_files import write_atomically
from mindllm_engine.tuning.selection import BANDS, Pool, Rows, SelectConfig, Selection

_PLOT_BINS = 200
_COLOURS = {"zero-shot": "tab:green", "few-shot": "tab:orange"}


def write_report(folder: Path, config: SelectConfig, selection: Selection) -> None:
    """report.json, report.md and entropies.png. Raises DataError if they cannot be written."""
    content = report(config, selection)
    write_atomically(folder / "report.json", orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
    write_atomically(folder / "report.md", markdown(content).encode())
    write_atomically(folder / "entropies.png", _plot(config, selection))


def report(config: SelectConfig, selection: Selection) -> dict[str, Any]:
    """All figures. Entropies are in nats a token."""
    pool = selection.pool
    clusters = []
    for number in range(int(selection.labels.max()) + 1):
        members = np.flatnonzero(selection.labels == number)
        clusters.append({"cluster": number, "kept": number in selection.kept, **statistics(pool, members)})
    choices = {}
    for name, chosen in selection.choices.items():
        base = selection.choices[name.removesuffix("_random").removesuffix("_length_matched")]
        shared = len(np.intersect1d(chosen, base)) / max(1, len(chosen))
        choices[name] = statistics(pool, chosen) | {"shared_with_its_choice": shared}
    return {
        "config": asdict(config),
        "pretraining_entropy": selection.pretraining_entropy,
        "recommendations": [asdict(recommendation) for recommendation in selection.recommendations],
        "within_cluster_sum": selection.within_sum,
        "left_out": pool.left_out,
        "all": statistics(pool, np.arange(len(pool.rows))),
        "clusters": clusters,
        "choices": choices,
    }


def statistics(pool: Pool, chosen: Rows) -> dict[str, Any]:
    """Lengths, entropies and languages of some records of the pool; without a record, no more than their number."""
    figures: dict[str, Any] = {"records": len(chosen)}
    if not len(chosen):
        return figures
    entropy = pool.entropy[chosen]
    figures["entropy"] = {"mean": float(entropy.mean()), "min": float(entropy.min()), "max": float(entropy.max())}
    figures["ifd"] = float(np.nanmean(pool.columns["ifd"][chosen].astype(np.float64)))
    for part in ("instruction", "response"):
        tokens = pool.columns[f"{part}_tokens"][chosen].astype(np.float64)
        figures[f"{part}_tokens"] = {
            "mean": float(tokens.mean()),
            "median": float(np.median(tokens)),
            "p95": float(np.quantile(tokens, 0.95)),
        }
        figures[f"{part}_chars"] = float(pool.columns[f"{part}_chars"][chosen].astype(np.float64).mean())
    figures["languages"] = dict(Counter(str(lang or "unknown") for lang in pool.columns["lang"][chosen]).most_common())
    return figures


def markdown(content: dict[str, Any]) -> str:
    """The report for a reader."""
    config, before = content["config"], content["pretraining_entropy"]
    left_out = ", ".join(f"{count:,} {status}" for status, count in content["left_out"].items()) or "none"
    lines = [
        "# Instruction data by entropy",
        "",
        f"Entropy of the {config['entropy']}, nats a token; clusters by {config['method']} k-means (sum of squared "
        f"distances {content['within_cluster_sum']:.4f}). Pre-training entropy: {before:.4f}. Left out: {left_out}.",
        "",
        "## Recommended",
        "",
    ]
    for found in content["recommendations"]:
        low, high = BANDS[found["use"]]
        place = "in" if found["inside"] else "**outside**, the nearest to"
        lines.append(
            f"- {found['use']}: cluster {found['cluster']}, on average {found['gap']:+.3f} above the pre-training "
            f"entropy, {place} the paper's band of {low:g} to {high:g}; {found['share']:.0%} of its records lie in it."
        )
    clusters = {f"{c['cluster']}{'' if c['kept'] else ' (dropped)'}": c for c in content["clusters"]}
    lines += ["", "## Clusters", "", *_table("cluster", {**clusters, "all": content["all"]}), "", "## Choices", ""]
    lines += _table("choice", content["choices"])
    lines += [
        "",
        "`_random` is drawn from all scored records; `_length_matched` too, with answers of the same lengths. Beat "
        "both before you believe in a choice. `ifd` holds the highest IFD below 1.",
        "",
        "![entropies](entropies.png)",
        "",
    ]
    return "\n".join(lines)


def _table(title: str, rows: dict[str, dict[str, Any]]) -> list[str]:
    header = [title, "records", "entropy", "from", "to", "IFD", "instruction tokens", "chars"]
    header += ["response tokens", "median", "p95", "chars", "languages"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name, row in rows.items():
        cells = [name, f"{row['records']:,}"]
        if row["records"]:
            entropy, response = row["entropy"], row["response_tokens"]
            cells += [f"{entropy[key]:.3f}" for key in ("mean", "min", "max")]
            cells += [
                f"{row['ifd']:.3f}",
                f"{row['instruction_tokens']['mean']:.1f}",
                f"{row['instruction_chars']:.1f}",
            ]
            cells += [f"{response['mean']:.1f}", f"{response['median']:.0f}", f"{response['p95']:.0f}"]
            cells += [f"{row['response_chars']:.1f}"]
            cells += [", ".join(f"{lang} {count / row['records']:.0%}" for lang, count in row["languages"].items())]
        lines.append(f"| {' | '.join(cells + [''] * (len(header) - len(cells)))} |")
    return lines


def _plot(config: SelectConfig, selection: Selection) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    entropy = selection.pool.entropy
    figure, axis = plt.subplots(figsize=(9, 4.5))
    shown = np.quantile(entropy, [0.0005, 0.9995])  # single records far out would press the rest together
    axis.hist(entropy, bins=_PLOT_BINS, range=(float(shown[0]), float(max(shown[1], shown[0] + 1e-3))), color="0.6")
    lowest = [entropy[selection.labels == number].min() for number in range(1, int(selection.labels.max()) + 1)]
    for border in lowest:
        axis.axvline(border, color="tab:blue", lw=0.8)
    before = selection.pretraining_entropy
    axis.axvline(before, color="tab:red", lw=1.5, label=f"pre-training entropy {before:.2f}")
    for use, (low, high) in BANDS.items():
        axis.axvspan(before + low, before + high, color=_COLOURS[use], alpha=0.2, label=f"{use}: +{low:g} to +{high:g}")
    axis.set(xlabel=f"entropy of the {config.entropy}, nats a token", ylabel="records")
    axis.set_title(f"{len(entropy):,} records, clusters by {config.method} k-means")
    axis.legend()
    figure.tight_layout()
    data = BytesIO()
    figure.savefig(data, dpi=120, format="png", metadata={"Software": None})
    plt.close(figure)
    return data.getvalue()
