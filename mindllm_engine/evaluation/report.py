"""The report of one run or several, made from their folders afterwards: hardware, configuration, losses by source and
language, speed, evaluation beside the paper's figures, and samples, as one self-contained HTML page; of a single run
also `report.json`, `report.md` and `loss.png` for other programs."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import orjson

from mindllm_engine.data.atomic_files import write_atomically
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.evaluation.heldout_table import COLUMNS, ReportRow, cells, to_markdown
from mindllm_engine.evaluation.report_plots import losses_picture, speed_picture
from mindllm_engine.evaluation.report_scores import evaluation_tables
from mindllm_engine.evaluation.run_facts import RunFacts, read_run
from mindllm_engine.html_page import html_page, image, number_cell, shown, table

PAGE_FILE = "report.html"


def make_report(folders: Sequence[Path], prompts: list[str], out: Path | None) -> list[RunFacts]:
    """Read run folders and write the page to `out`, or into the folder of the only run.

    Raises:
        ConfigError: several runs and no `out`.
        DataError: a folder holds no run, or the page cannot be written.
    """
    if not folders:
        raise ConfigError("report: name one run folder at least")
    if out is None and len(folders) > 1:
        raise ConfigError("report: several runs need a place for their page; give --out FILE.html")
    short = [folder.resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    runs = [read_run(folder, name, prompts) for folder, name in zip(folders, names, strict=True)]
    page = out if out is not None else folders[0] / PAGE_FILE
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        if len(runs) == 1:
            write_single(runs[0], folders[0])
        write_atomically(page, to_html(runs).encode())
    except OSError as error:
        raise DataError(f"{page}: cannot be written ({error.strerror}); give another place with --out") from error
    return runs


def write_single(run: RunFacts, folder: Path) -> None:
    """What other programs read of a run: report.json, report.md, loss.png. Raises OSError."""
    fields = ("steps", "tokens", "parameters", "rows", "continuations", "speed", "environments")
    facts = {"run_dir": run.folder} | {name: value for name, value in asdict(run).items() if name in fields}
    write_atomically(folder / "report.json", orjson.dumps(facts, option=orjson.OPT_INDENT_2))
    if run.rows:
        write_atomically(folder / "report.md", to_markdown(run.rows).encode())
    write_atomically(folder / "loss.png", losses_picture([run]))


def to_html(runs: Sequence[RunFacts]) -> str:
    """One page that needs no other file."""
    parts = [
        summary_table(runs),
        image(losses_picture(runs), "losses"),
        image(speed_picture(runs), "speed and gradient norms"),
    ]
    for run in runs:
        parts += run_section(run, alone=len(runs) == 1)
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    return html_page(title, parts)


def summary_table(runs: Sequence[RunFacts]) -> str:
    """One line a run."""
    header = ("run", "network", "parameters", "steps", "tokens", "held-out bpb", "tokens/s", "MFU", "GiB", "ranks")
    rows = []
    for run in runs:
        last = next((row for row in run.rows if row.name == "all"), None)
        rank_count = run.environments[-1].ranks if run.environments else None
        numbers = (
            f"{run.parameters:,}",
            f"{run.steps:,}",
            f"{run.tokens:,}",
            figure(last.bpb_after if last else None, ".3f"),
            figure(run.speed.tokens_per_second, ",.0f"),
            figure(run.speed.mfu, ".1%"),
            figure(run.speed.memory, ".1f"),
            figure(rank_count, "d"),
        )
        names = f"<td>{shown(run.name)}</td><td>{shown(run.network)}</td>"
        rows.append(f"<tr>{names}{''.join(map(number_cell, numbers))}</tr>")
    note = (
        "<p class=note>bpb: bits per byte of held-out text. Speed and MFU (model FLOPs utilisation): medians over the "
        "run's records. Memory at its peak on the first rank.</p>"
    )
    return table(header, rows, numbers=8) + note


def figure(value: float | int | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else format(value, form)


def run_section(run: RunFacts, alone: bool) -> Iterator[str]:
    """All about one run."""
    if not alone:
        yield f"<h2>{shown(run.name)}</h2>"
    yield f"<p class=note>{shown(run.folder)}</p>"
    yield "<h3>Held-out text by source and language</h3>"
    if run.note:
        yield f"<p class=note>{shown(run.note)}</p>"
    if run.rows:
        yield heldout(run.rows)
    yield from evaluation_tables(run.evaluations, run.network)
    if run.continuations:
        yield "<h3>Samples</h3>" + "\n".join(
            f"<p><b>{shown(prompt)}</b> {shown(text)}</p>" for prompt, text in run.continuations.items()
        )
    yield "<h3>Hardware and software</h3>" + hardware(run)
    yield "<h3>Configuration</h3>"
    for name, text in run.configs.items():
        yield f"<details><summary>{shown(name)}</summary><pre>{shown(text)}</pre></details>"


def heldout(rows: Sequence[ReportRow]) -> str:
    """The table of held-out losses beside models of counts."""
    body = []
    for row in rows:
        texts = cells(row)
        kind = ' class="sum"' if row.name in (row.lang, "all") else ""
        words = "".join(f"<td>{shown(text)}</td>" for text in texts[:2])
        body.append(f"<tr{kind}>{words}{''.join(map(number_cell, texts[2:]))}</tr>")
    note = (
        "<p class=note>Loss in nats a token; bpb, and all columns after it, in bits per byte. unigram, bigram: of "
        "all training tokens; own bigram: of that source alone.</p>"
    )
    return table([title for title, _, _ in COLUMNS], body, numbers=len(COLUMNS) - 2) + note


def hardware(run: RunFacts) -> str:
    """One line a start of the run."""
    if not run.environments:
        return "<p class=note>The run has no environment.jsonl: it is of an earlier release.</p>"
    rows = []
    for here in run.environments:
        words = (here.started, here.device, here.processor, here.engine, here.torch, here.cuda or "–", here.python)
        numbers = (f"{here.ranks:,}", f"{here.cores:,}", f"{here.memory_gib:,.1f}")
        rows.append(
            "<tr>" + "".join(f"<td>{shown(text)}</td>" for text in words) + "".join(map(number_cell, numbers)) + "</tr>"
        )
    header = ("started", "device", "processor", "engine", "torch", "CUDA", "Python", "ranks", "cores", "GiB")
    return table(header, rows, numbers=3)
