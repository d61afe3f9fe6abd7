"""The report of a run, made from its folder afterwards: held-out losses before and after beside the baselines, the loss
plot, and sample continuations, as `report.json`, `report.md`, `loss.png` and one self-contained `report.html`."""

import base64
import html
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from mindllm_engine.command_line import parse_arguments
from mindllm_engine.corpus.open_tokenizer import TextTokenizer
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import DataError
from mindllm_engine.evaluation.baselines import BigramModel, UnigramModel, bits_per_byte, xz_bits_per_byte
from mindllm_engine.evaluation.generation import generate
from mindllm_engine.models.gpt_neo import GPTNeo
from mindllm_engine.models.mindllm import MindLLM
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.metrics import read_metrics
from mindllm_engine.training.setup import CONFIG_FILE, Data, open_data
from mindllm_engine.training.weights import best_device, load_model

NEW_TOKENS = 60
TEMPERATURE = 0.7
TOP_P = 0.9


@dataclass(frozen=True)
class ReportRow:
    """One source, language, or everything. Losses in nats a token, the rest in bits per byte.

    `unigram` and `bigram` are models of all training tokens, `own_bigram` one of this source's alone.
    """

    name: str
    lang: str
    heldout_bytes: int
    loss_before: float
    loss_after: float
    bpb_before: float
    bpb_after: float
    unigram: float
    bigram: float
    own_bigram: float
    xz: float | None = None


@dataclass(frozen=True)
class Report:
    """Rows of the table (sources, then languages, then everything), and continuations by prompt."""

    run_dir: str
    steps: int
    tokens: int
    parameters: int
    rows: list[ReportRow]
    continuations: dict[str, str]


def make_report(run_dir: Path, prompts: list[str]) -> Report:
    """Read a run folder, score the baselines, and write report.json, report.md, loss.png and report.html
    into it.

    Raises:
        DataError: the folder holds no evaluated run.
    """
    records = read_metrics(run_dir)
    evaluated = [record for record in records if "heldout_bpb" in record]
    if records and not evaluated:
        raise DataError(
            f"{run_dir}: the run has no held-out data to report; name some under data.heldout or corpus.holdout"
        )
    if not (run_dir / CONFIG_FILE).exists() or not evaluated:
        raise DataError(
            f"{run_dir}: holds no run with held-out losses; train it first with tools/pretrain.py --run.dir {run_dir}"
        )
    config = parse_arguments(RunConfig, "", ["--config", str(run_dir / CONFIG_FILE)])
    data = open_data(config)
    model, _ = load_model(run_dir, best_device())
    report = Report(
        run_dir=str(run_dir),
        steps=evaluated[-1]["step"],
        tokens=evaluated[-1]["tokens"],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        rows=make_rows(data, config.model.selected.vocab_size, evaluated[0], evaluated[-1]),
        continuations=continue_prompts(model, data.tokenizer, prompts, config.run.seed) if data.tokenizer else {},
    )
    (run_dir / "report.json").write_bytes(orjson.dumps(asdict(report), option=orjson.OPT_INDENT_2))
    (run_dir / "report.md").write_text(to_markdown(report), encoding="utf-8")
    plot_losses(records, data.names, run_dir / "loss.png")
    (run_dir / "report.html").write_text(to_html(report, run_dir / "loss.png"), encoding="utf-8")
    return report


def continue_prompts(
    model: MindLLM | GPTNeo, tokenizer: TextTokenizer, prompts: list[str], seed: int
) -> dict[str, str]:
    """What the network says after each prompt, by prompt."""
    continuations = {}
    for prompt in prompts:
        new_ids = generate(
            model,
            [tokenizer.bos_id, *tokenizer.encode(prompt)],
            NEW_TOKENS,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            eos_id=tokenizer.eos_id,
            seed=seed,
            vocab_size=tokenizer.vocab_size,
        )
        continuations[prompt] = tokenizer.decode(list(new_ids))
    return continuations


def make_rows(data: Data, vocab_size: int, before: dict[str, Any], after: dict[str, Any]) -> list[ReportRow]:
    """The table: one row for each source with held-out text, each language, and everything."""
    sources = [source if isinstance(source, TokenFile) else source.whole() for source in data.sources]
    unigram, bigram = UnigramModel(sources, vocab_size), BigramModel(sources, vocab_size)
    rows: list[ReportRow] = []
    targets: list[int] = []
    texts: list[bytes] = []
    for name, source, heldout in zip(data.names, sources, data.heldout, strict=True):
        if heldout is None or f"heldout_bpb/{name}" not in after or f"heldout_bpb/{name}" not in before:
            continue
        text_bytes = heldout.manifest.text_bytes
        rows.append(
            ReportRow(
                name=name,
                lang=heldout.manifest.lang,
                heldout_bytes=text_bytes,
                loss_before=before[f"heldout_loss/{name}"],
                loss_after=after[f"heldout_loss/{name}"],
                bpb_before=before[f"heldout_bpb/{name}"],
                bpb_after=after[f"heldout_bpb/{name}"],
                unigram=bits_per_byte(unigram.nats(heldout), text_bytes),
                bigram=bits_per_byte(bigram.nats(heldout), text_bytes),
                own_bigram=bits_per_byte(BigramModel([source], vocab_size).nats(heldout), text_bytes),
            )
        )
        targets.append(int((heldout.lengths - 1).clip(min=0).sum()))
        if data.tokenizer is not None:
            texts.append("\n".join(heldout_documents(heldout, data)).encode())
    everything = xz_bits_per_byte(b"\n".join(texts)) if texts else None
    totals = [mean_row(lang, lang, rows, targets, None) for lang in sorted({row.lang for row in rows})]
    return [*rows, *totals, mean_row("all", "all", rows, targets, everything)]


def heldout_documents(file: TokenFile, data: Data) -> list[str]:
    """The text of each held-out document, from its tokens."""
    assert data.tokenizer is not None
    return [data.tokenizer.decode(file.document(number).tolist()) for number in range(file.documents)]


def mean_row(name: str, lang: str, rows: list[ReportRow], targets: list[int], xz: float | None) -> ReportRow:
    """The mean of a language's rows (or of all): losses by tokens, bits by bytes."""
    chosen = [(row, count) for row, count in zip(rows, targets, strict=True) if lang in (row.lang, "all")]
    tokens = sum(count for _, count in chosen)
    text_bytes = sum(row.heldout_bytes for row, _ in chosen)

    def by_tokens(field: str) -> float:
        return sum(getattr(row, field) * count for row, count in chosen) / tokens

    def by_bytes(field: str) -> float:
        return sum(getattr(row, field) * row.heldout_bytes for row, _ in chosen) / text_bytes

    return ReportRow(
        name=name,
        lang=lang,
        heldout_bytes=text_bytes,
        loss_before=by_tokens("loss_before"),
        loss_after=by_tokens("loss_after"),
        bpb_before=by_bytes("bpb_before"),
        bpb_after=by_bytes("bpb_after"),
        unigram=by_bytes("unigram"),
        bigram=by_bytes("bigram"),
        own_bigram=by_bytes("own_bigram"),
        xz=xz,
    )


def plot_losses(records: list[dict[str, Any]], names: list[str], path: Path) -> None:
    """Training loss and held-out bits per byte of each source against tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    steps = [record for record in records if "loss" in record]
    left.plot([record["tokens"] for record in steps], [record["loss"] for record in steps], linewidth=0.8)
    left.set(title="Training loss", xlabel="tokens", ylabel="nats a token")
    evaluated = [record for record in records if "heldout_bpb" in record]
    for number, name in enumerate(name for name in names if f"heldout_bpb/{name}" in evaluated[-1]):
        right.plot(
            [record["tokens"] for record in evaluated],
            [record[f"heldout_bpb/{name}"] for record in evaluated],
            marker="o",
            markersize=3,
            linewidth=1,
            linestyle="-" if number < 10 else "--",
            label=name,
        )
    right.plot(
        [record["tokens"] for record in evaluated],
        [record["heldout_bpb"] for record in evaluated],
        color="black",
        linewidth=2,
        label="all",
    )
    right.set(title="Held-out text", xlabel="tokens", ylabel="bits per byte", yscale="log")
    right.yaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
    right.yaxis.set_minor_formatter(matplotlib.ticker.ScalarFormatter())
    right.legend(fontsize=7, ncol=2)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


COLUMNS = (
    ("source", "name", ""),
    ("lang", "lang", ""),
    ("held-out KB", "heldout_bytes", "kb"),
    ("loss before", "loss_before", ".3f"),
    ("loss after", "loss_after", ".3f"),
    ("bpb before", "bpb_before", ".3f"),
    ("bpb after", "bpb_after", ".3f"),
    ("unigram", "unigram", ".3f"),
    ("bigram", "bigram", ".3f"),
    ("own bigram", "own_bigram", ".3f"),
    ("xz -9", "xz", ".3f"),
)


def cells(row: ReportRow) -> list[str]:
    """A row of the table as text."""
    texts = []
    for _, field, form in COLUMNS:
        value = getattr(row, field)
        if value is None:
            texts.append("")
        elif form == "kb":
            texts.append(f"{value / 1000:,.1f}")
        else:
            texts.append(format(value, form) if not isinstance(value, float) or math.isfinite(value) else "nan")
    return texts


def to_markdown(report: Report) -> str:
    """The table in Markdown."""
    lines = ["| " + " | ".join(title for title, _, _ in COLUMNS) + " |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in report.rows]
    return "\n".join(lines) + "\n"


def to_html(report: Report, plot: Path) -> str:
    """One page that needs no other file."""
    head = "".join(f"<th>{html.escape(title)}</th>" for title, _, _ in COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(row)) + "</tr>\n" for row in report.rows
    )
    samples = "".join(
        f"<p><b>{html.escape(prompt)}</b>{html.escape(text)}</p>\n" for prompt, text in report.continuations.items()
    )
    image = base64.b64encode(plot.read_bytes()).decode()
    return (
        f"<!doctype html><html><head><meta charset='utf-8'><title>{html.escape(report.run_dir)}</title><style>"
        "body{font:15px sans-serif;max-width:75em;margin:2em auto}td,th{padding:.2em .7em;text-align:right}"
        "td:first-child{text-align:left}tr:nth-child(even){background:#f3f3f3}img{max-width:100%}p{white-space:pre-wrap}"
        f"</style></head><body><h1>{html.escape(report.run_dir)}</h1>"
        f"<p>{report.parameters:,} parameters, {report.steps:,} steps, {report.tokens:,} tokens. Loss in nats a token; "
        "bpb, and all columns after it: bits per byte of held-out text; own bigram: of the source alone.</p>"
        f"<img src='data:image/png;base64,{image}' alt='losses'>"
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table><h2>Continuations</h2>{samples}</body></html>\n"
    )
