"""Writes what a study found, and reads it back.

<study>/findings.json   everything but the pictures, as plain data
<study>/<file>          what else an analysis makes, such as a config for a run
<study>/<name>.png      the plots
<study>/report.html     the page, with the plots inside
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import orjson

from mindllm_engine.data.atomic_files import write_atomically
from mindllm_engine.errors import DataError
from mindllm_engine.html_page import html_page, image, shown, table
from mindllm_engine.studies.claims import Claim
from mindllm_engine.studies.findings import Cost, Findings, Picture, Table
from mindllm_engine.studies.results import LeftOut
from mindllm_engine.training.environment import processor_name

FINDINGS_FILE = "findings.json"
PAGE_FILE = "report.html"
JOINT_TITLE = "The papers' experiments"


def write_findings(findings: Findings, folder: Path) -> Path:
    """Write everything and return the page. Raises DataError if it cannot be written."""
    content = {
        "title": findings.title,
        "machine": processor_name(),
        "claims": [claim.as_json() for claim in findings.claims],
        "tables": [asdict(entry) for entry in findings.tables],
        "numbers": findings.numbers,
        "files": list(findings.files),
        "left_out": [asdict(entry) for entry in findings.left_out],
        "cost": asdict(findings.cost),
        "pictures": [{"name": picture.name, "caption": picture.caption} for picture in findings.pictures],
    }
    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    write_atomically(folder / FINDINGS_FILE, orjson.dumps(content, option=options) + b"\n")
    for picture in findings.pictures:
        write_atomically(folder / f"{picture.name}.png", picture.png)
    for name, text in findings.files.items():
        write_atomically(folder / name, text.encode())
    page = folder / PAGE_FILE
    write_atomically(page, html_page(findings.title, study_parts(findings)).encode())
    return page


def read_findings(folder: Path) -> Findings:
    """What `write_findings` wrote.

    Raises:
        DataError: the folder has no findings, or damaged ones.
    """
    path = folder / FINDINGS_FILE
    try:
        content = orjson.loads(path.read_bytes())
        return Findings(
            content["title"],
            [Claim(**claim) for claim in content["claims"]],
            [Table(**entry) for entry in content["tables"]],
            [
                Picture(entry["name"], (folder / f"{entry['name']}.png").read_bytes(), entry["caption"])
                for entry in content["pictures"]
            ],
            content["numbers"],
            [LeftOut(**entry) for entry in content["left_out"]],
            Cost(**content["cost"]),
            {name: (folder / name).read_text(encoding="utf-8") for name in content["files"]},
        )
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be read ({error.strerror}); run tools/study.py for this study first"
        ) from error
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is damaged ({error}); run tools/study.py for this study again") from error


def write_joint_page(studies: Mapping[str, Findings], page: Path) -> None:
    """One page about several studies by name, as HTML and, of claims and plots alone, as Markdown; beside it a folder
    for each study, as `write_findings` fills it.

    Raises:
        DataError: there is no study, or a file cannot be written.
    """
    if not studies:
        raise DataError("no study is named; give the folders of studies that have run")
    parts = [f"<p>{shown(verdicts(studies))}</p>"]
    parts += ["<ul>"] + [f'<li><a href="#{shown(name)}">{shown(f.title)}</a></li>' for name, f in studies.items()]
    parts.append("</ul>")
    for name, findings in studies.items():
        write_findings(findings, page.parent / name)
        parts += [f'<h2 id="{shown(name)}">{shown(findings.title)}</h2>', *study_parts(findings)]
    write_atomically(page, html_page(JOINT_TITLE, parts).encode())
    write_atomically(page.with_suffix(".md"), joint_markdown(studies).encode())


def study_parts(findings: Findings) -> list[str]:
    """The page of one study in finished parts, without its title."""
    parts = [claims_table(findings.claims)]
    for picture in findings.pictures:
        parts += [image(picture.png, picture.caption), f'<p class="note">{shown(picture.caption)}</p>']
    for entry in findings.tables:
        rows = [_row(row) for row in entry.rows]
        header = [shown(name) for name in entry.header]
        parts += [f"<h3>{shown(entry.title)}</h3>", table(header, rows, len(header) - 1)]
        if entry.note:
            parts.append(f'<p class="note">{shown(entry.note)}</p>')
    if findings.left_out:
        rows = [f"<tr><td>{shown(entry.name)}</td><td>{shown(entry.reason)}</td></tr>" for entry in findings.left_out]
        parts += ["<h3>Left out</h3>", table(["trial", "reason"], rows, 0)]
    cost = findings.cost
    parts.append(
        f'<p class="note">{cost.trials} trials, {cost.tokens:,} tokens, {cost.seconds / 60:.1f} minutes of training '
        "when done one after the other.</p>"
    )
    return parts


def claims_table(claims: Sequence[Claim]) -> str:
    """The claims of one study or several, paper beside here."""
    rows = []
    for claim in claims:
        cells = (claim.statement, claim.source, claim.paper_shown, claim.here, claim.verdict, claim.reason)
        rows.append("<tr>" + "".join(f"<td>{shown(cell)}</td>" for cell in cells) + "</tr>")
    return table(["claim", "source", "paper", "here", "verdict", "because"], rows, 0)


def verdicts(studies: Mapping[str, Findings]) -> str:
    """How many claims of these studies came to what, in a sentence."""
    found = [claim.verdict for findings in studies.values() for claim in findings.claims]
    said = ", ".join(f"{found.count(verdict)} {verdict}" for verdict in sorted(set(found)))
    return f"{len(found)} claims at this scale: {said}."


def joint_markdown(studies: Mapping[str, Findings]) -> str:
    """Claims and plots of several studies as Markdown, for places that show no HTML."""
    lines = [f"# {JOINT_TITLE}", "", verdicts(studies)]
    for name, findings in studies.items():
        lines += [
            "",
            f"## {findings.title}",
            "",
            "| claim | source | paper | here | verdict |",
            "|---|---|---|---|---|",
        ]
        for claim in findings.claims:
            cells = (claim.statement, claim.source, claim.paper_shown, claim.here, f"**{claim.verdict}**")
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
        lines += [f"\n![{picture.caption}]({name}/{picture.name}.png)" for picture in findings.pictures]
        lines += [f"\nLeft out: {entry.name}: {entry.reason}" for entry in findings.left_out]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    first, *rest = cells
    return f"<tr><td>{shown(first)}</td>" + "".join(f'<td class="n">{shown(cell)}</td>' for cell in rest) + "</tr>"
