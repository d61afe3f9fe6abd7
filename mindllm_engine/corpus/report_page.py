"""The report of a corpus as one HTML page (html_page.py)."""

from mindllm_engine.corpus.report_sums import (
    ReasonSummary,
    SourceReport,
    StepFlow,
    TableRow,
    all_inconsistencies,
    entered_documents,
    most_first,
    reason_summaries,
    source_flow,
    step_places,
    table_1,
    total_flow,
)
from mindllm_engine.html_page import html_page, number_cell, shown, table

_STYLE = """
.flow td { font-size: .85em; }
.warnings { border: 3px solid #b00020; padding: .5em 1em; } .warnings h2 { margin-top: 0; color: #b00020; }
.example { border-left: 3px solid #bbb; margin: .6em 0 .6em 1em; padding-left: .8em; break-inside: avoid; }
.excerpt { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f5f5; padding: .4em .6em;
  font-size: .9em; } .id { overflow-wrap: anywhere; }
.documents { fill: #1f5a96; } .chars { fill: #e8a33d; } .frame { fill: #eee; }
"""
_BAR_WIDTH = 90


def report_page(sources: list[SourceReport]) -> str:
    """The whole page."""
    parts = [
        summary_of(sources),
        warnings_box(all_inconsistencies(sources)),
        corpus_table(sources),
        flow_picture(sources),
        reasons_of_all(sources),
        reasons_by_source(sources),
        counters(sources),
        examples(reason_summaries(sources)),
    ]
    return html_page("The corpus: what entered, what left, and why", parts, _STYLE)


def percent(part: int, whole: int) -> str:
    """As HTML, to two places, and neither nothing nor all where it is not."""
    if not whole:
        return "–"
    figure = f"{100 * part / whole:.2f} %"
    if figure == "0.00 %" and part > 0:
        return "&lt; 0.01 %"
    return "&gt; 99.99 %" if figure == "100.00 %" and part < whole else figure


def gigabytes(size: int) -> str:
    """In 10^9 bytes."""
    return f"{size / 1e9:,.2f}" if size >= 1e9 else f"{size / 1e9:.3g}"


def summary_of(sources: list[SourceReport]) -> str:
    entered = sum(map(entered_documents, sources))
    written = sum(source.written_documents for source in sources)
    size = sum(source.written_bytes for source in sources)
    return (
        f"<p>{len(sources):,} sources; {entered:,} documents entered, {written:,} ({percent(written, entered)}) were "
        f"written: {gigabytes(size)} GB of text. The same figures, and more by source, are in the JSON file beside "
        "this page.</p>"
    )


def warnings_box(sentences: list[str]) -> str:
    """Sums that are wrong, or the assurance that none is."""
    if not sentences:
        return (
            "<p>All sums were checked: for every source and step, what entered was either dropped or left, and what "
            "left the last step was written.</p>"
        )
    items = "".join(f"<li>{shown(sentence)}</li>" for sentence in sentences)
    return (
        '<div class="warnings" role="alert"><h2>These sums are wrong</h2><p>Some documents are counted twice or not at '
        "all: files of the corpus are damaged, or come from different runs. Delete the stage's folder and build it "
        f"again.</p><ul>{items}</ul></div>"
    )


def corpus_table(sources: list[SourceReport]) -> str:
    """Table 1 of the MindLLM paper for this corpus."""
    rows = table_1(sources)
    total = sum(row.bytes for row in rows)
    with_tokens = any(row.tokens is not None for row in rows)

    def line(kind: str, words: list[str], documents: int, size: int, tokens: int | None) -> str:
        cells = [f"<td>{shown(word)}</td>" for word in words]
        cells += [number_cell(documents), number_cell(gigabytes(size)), number_cell(percent(size, total))]
        if with_tokens:
            cells.append(number_cell("–" if tokens is None else tokens))
        return f"<tr{kind}>{''.join(cells)}</tr>"

    lines = []
    for lang in dict.fromkeys(row.lang for row in rows):
        own = [row for row in rows if row.lang == lang]
        lines += [line("", [lang, row.category], row.documents, row.bytes, row.tokens) for row in own]
        lines.append(line(' class="sum"', [lang, "all"], *column_sums(own)))
    lines.append(line(' class="sum"', ["all", "all"], *column_sums(rows)))
    header = ["language", "category", "documents", "size (GB)", "share"] + ["tokens (estimate)"] * with_tokens
    return (
        "<h2>The clean corpus</h2>\n" + table(header, lines, len(header) - 2) + '\n<p class="note">As Table 1 of the '
        "MindLLM paper (arXiv 2310.15777). GB are 10<sup>9</sup> bytes of text in UTF-8, uncompressed; shares are of "
        "these bytes.</p>"
    )


def column_sums(rows: list[TableRow]) -> tuple[int, int, int | None]:
    """Documents, bytes, tokens."""
    tokens = [row.tokens for row in rows if row.tokens is not None]
    return (
        sum(row.documents for row in rows),
        sum(row.bytes for row in rows),
        sum(tokens) if len(tokens) == len(rows) else None,
    )


def flow_picture(sources: list[SourceReport]) -> str:
    """What is left after each step, a row of bars for each source."""
    places = step_places(sources)
    rows: list[str] = []
    named = [(source.name, source_flow(source)) for source in sources]
    for name, flows in [*named, ("all sources", total_flow(sources))]:
        found = {flow.place: flow for flow in flows}
        first = flows[0] if flows else StepFlow(1, "")
        cells = [bars(found.get(place, StepFlow(*place)), first) for place in places]
        kind = "" if len(rows) < len(sources) else ' class="sum"'
        rows.append(f"<tr{kind}><td>{shown(name)}<br>{first.entered:,}</td>{''.join(cells)}</tr>")
    header = ["source", *(shown(step) for _, step in places)]
    return (
        "<h2>What is left after each step</h2>\n"
        '<p class="note">Under its name, the documents of a source. Upper bar and figure: documents left after the '
        "step; lower bar and figure: characters; both in per cent of what entered the first step.</p>\n"
        + table(header, rows, 0, "flow")
    )


def bars(flow: StepFlow, first: StepFlow) -> str:
    """A cell of the picture."""
    documents = percent(flow.left, first.entered)
    chars = percent(flow.left_chars, first.entered_chars)
    rectangles = [f'<rect class="frame" width="{_BAR_WIDTH}" height="20"/>']
    for kind, top, part, whole in (
        ("documents", 0, flow.left, first.entered),
        ("chars", 11, flow.left_chars, first.entered_chars),
    ):
        width = _BAR_WIDTH * min(max(part / whole, 0), 1) if whole else 0
        rectangles.append(f'<rect class="{kind}" y="{top}" width="{width:.2f}" height="9"/>')
    picture = f'<svg width="{_BAR_WIDTH}" height="20" aria-hidden="true">{"".join(rectangles)}</svg>'
    return f"<td>{picture}<br>{documents}<br>{chars}</td>"


def step_rows(flows: list[StepFlow]) -> list[str]:
    """Two kinds of rows: a step, and below it each reason for which it dropped documents."""
    rows = []
    for flow in flows:
        share = percent(flow.dropped_documents, flow.entered)
        cells: list[int | str] = [flow.entered, flow.dropped_documents, share, flow.left]
        cells += [flow.entered_chars, flow.left_chars]
        rows.append(f"<tr><td><b>{shown(flow.step)}</b></td><td></td>{''.join(map(number_cell, cells))}</tr>")
        for words, reason in most_first(flow.dropped):
            share = percent(reason.documents, flow.entered)
            cells = ["", reason.documents, share, "", reason.chars, ""]
            rows.append(f"<tr><td></td><td>{shown(words)}</td>{''.join(map(number_cell, cells))}</tr>")
    return rows


_STEP_HEADER = ["step", "reason", "entered", "dropped", "of entered", "left", "characters", "characters left"]


def reasons_of_all(sources: list[SourceReport]) -> str:
    return (
        "<h2>Why documents left</h2>\n"
        + table(_STEP_HEADER, step_rows(total_flow(sources)), 6)
        + '\n<p class="note">Characters of a reason are those of the dropped documents. A step may change the '
        "documents that it keeps, so characters do not add up as documents do.</p>"
    )


def reasons_by_source(sources: list[SourceReport]) -> str:
    parts = ["<h2>Why documents left, by source</h2>"]
    for source in sources:
        counts = f"{entered_documents(source):,} documents entered, {source.written_documents:,} were written"
        parts.append(f"<h3>{shown(source.name)} ({shown(source.category)})</h3>\n<p>{counts}.</p>")
        parts.append(table(_STEP_HEADER, step_rows(source_flow(source)), 6))
    return "\n".join(parts)


def counters(sources: list[SourceReport]) -> str:
    """Whatever else the steps count."""
    by_source: dict[tuple[int, str, str], list[tuple[int, str]]] = {}
    for source in sources:
        for flow in source_flow(source):
            for what, number in flow.counts.items():
                by_source.setdefault((*flow.place, what), []).append((number, source.name))
    rows = []
    for flow in total_flow(sources):
        for what, number in sorted(flow.counts.items()):
            own = sorted(by_source[(*flow.place, what)], key=lambda pair: (-pair[0], pair[1]))
            list_of_sources = ", ".join(f"{shown(name)} {count:,}" for count, name in own)
            words = f"<td>{shown(flow.step)}</td><td>{shown(what)}</td><td>{list_of_sources}</td>"
            rows.append(f"<tr>{words}{number_cell(number)}</tr>")
    if not rows:
        return ""
    return "<h2>What the steps counted</h2>\n" + table(["step", "counter", "by source", "all"], rows, 1)


def examples(reasons: list[ReasonSummary]) -> str:
    """Folded away by reason."""
    parts = [
        "<h2>Examples of each reason</h2>",
        '<p class="note">Up to twenty of each, chosen at random over all sources; long texts are shown by their '
        "beginning and end. Open those that shall be printed.</p>",
    ]
    for reason in reasons:
        by_source = ", ".join(f"{shown(name)} {count:,}" for name, count in reason.by_source.items())
        parts.append(
            f"<details><summary><b>{shown(reason.step)}: {shown(reason.reason)}</b> – {reason.documents:,} documents "
            f"({by_source})</summary>"
        )
        for example in reason.examples:
            detail = f" – {shown(example.detail)}" if example.detail else ""
            parts.append(
                f'<div class="example"><div class="id"><b>{shown(example.source)}</b> <code>{shown(example.id)}</code>'
                f'{detail}</div><div class="excerpt" dir="auto">{shown(example.excerpt)}</div></div>'
            )
        parts.append("</details>")
    return "\n".join(parts)
