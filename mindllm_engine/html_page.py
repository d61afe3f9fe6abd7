"""Reports as HTML pages: one file, no scripts, nothing from elsewhere, readable on paper.

Texts in them come from the open web and from networks. All of them pass through `shown`, so that whatever they hold is
text and no markup; should one slip through, the page's content policy forbids scripts and anything that would be
loaded.
"""

import base64
import html
from collections.abc import Iterable, Sequence

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 2em auto; max-width: 72em;
  padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.25em; margin-top: 2em; } h3 { font-size: 1.05em; margin-bottom: .3em; }
table { border-collapse: collapse; } th, td { padding: .2em .6em; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #888; font-weight: 600; } td { border-bottom: 1px solid #ddd; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.sum td { border-top: 2px solid #888; font-weight: 600; } tr { break-inside: avoid; }
.scroll { overflow-x: auto; } .note { color: #555; }
summary { cursor: pointer; padding: .2em 0; } img { max-width: 100%; }
@media print { body { font-size: 10pt; margin: 0; max-width: none; } .scroll { overflow: visible; } }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
# Control characters as pictures of them, since HTML cannot hold them; line ends and tabs stay.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def html_page(title: str, parts: Iterable[str], style: str = "") -> str:
    """A page of finished parts. `title` is plain text; `style` adds to the common one."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{shown(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n<h1>{shown(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def shown(text: str) -> str:
    """Any text as HTML that shows it and does nothing else."""
    return html.escape(text.translate(_PICTURES))


def image(png: bytes, description: str) -> str:
    """A picture inside the page."""
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{shown(description)}">'


def number_cell(text: int | str) -> str:
    """A cell of digits."""
    return f'<td class="n">{text if isinstance(text, str) else f"{text:,}"}</td>'


def table(header: Sequence[str], rows: Iterable[str], numbers: int, kind: str = "") -> str:
    """A table of finished rows; of its columns the last `numbers` hold digits."""
    words = len(header) - numbers
    cells = "".join(f"<th{'' if place < words else ' class=n'}>{name}</th>" for place, name in enumerate(header))
    body = "\n".join(rows)
    parts = f"<thead><tr>{cells}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return f'<div class="scroll"><table class="{kind}">{parts}</table></div>'
