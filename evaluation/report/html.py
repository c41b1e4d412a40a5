"""The report's HTML: escaped by default, one file, no script, nothing loaded from anywhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDE_COLUMNS = 6  # more are set closer, an interval under its mean
STYLE = """
:root { --ink: #1c2430; --soft: #5c6675; --line: #dde2e9; --tint: #f4f6f9; --accent: #1f5fa8; --warn: #8a4b00; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 1080px; padding: 24px 20px 64px; background: #fff; color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 44px 0 10px; padding-bottom: 6px; border-bottom: 2px solid var(--line); }
h3 { font-size: 1.02rem; margin: 26px 0 6px; }
p { margin: 8px 0; max-width: 78ch; }
a { color: var(--accent); }
.subtitle, .note, figcaption { color: var(--soft); font-size: .9rem; }
.warning { border-left: 4px solid #d98200; background: #fff6e6; color: var(--warn); padding: 10px 14px; margin: 16px 0;
  font-weight: 600; }
.refused { border-left: 4px solid #b3261e; background: #fdecea; color: #8c1d18; padding: 10px 14px; margin: 12px 0; }
.failed { color: #b3261e; font-weight: 700; }
.absent { background: var(--tint); border-left: 4px solid var(--line); padding: 8px 12px; color: var(--soft); }
nav { margin: 14px 0 6px; font-size: .92rem; }
nav a { display: inline-block; margin: 0 14px 4px 0; white-space: nowrap; }
ul.answers { padding-left: 20px; margin: 12px 0; }
ul.answers li { margin: 6px 0; max-width: 82ch; }
.scroll { overflow-x: auto; margin: 10px 0 14px; }
table { border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 14px 6px 8px; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; }
thead th { background: var(--tint); border-bottom: 2px solid var(--line); }
th:first-child, td:first-child, .text td, .text th { text-align: left; }
tbody tr:hover { background: var(--tint); }
td small { margin-left: 4px; color: var(--soft); font-size: .85em; white-space: nowrap; }
tr.group th { text-align: left; color: var(--soft); font-weight: 600; padding-top: 14px; white-space: normal; }
tr.group:hover { background: none; }
.own { border: 1.5px solid var(--accent); border-radius: 3px; padding: 0 3px; }
table.wide { font-size: .84rem; }
.wide th, .wide td { padding: 4px 8px 4px 4px; white-space: nowrap; }
.wide td:first-child, .wide .group th { white-space: normal; }
.wide td small { display: block; margin: 0; font-size: .8em; }
figure { margin: 14px 0 20px; }
figure img { max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 3px; }
details { margin: 8px 0; }
summary { cursor: pointer; color: var(--accent); }
pre { background: var(--tint); padding: 12px; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: .84rem; }
code { background: var(--tint); padding: 1px 4px; overflow-wrap: anywhere; }
@media (max-width: 600px) { body { padding: 16px 12px 40px; font-size: 15px; } h1 { font-size: 1.35rem; }
  th, td { padding: 5px 10px 5px 4px; } td small { display: block; } }
@media print { body { max-width: none; padding: 0; font-size: 10.5pt; } nav { display: none; }
  .scroll { overflow: visible; } tr, figure, .warning { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""


class Html(str):
    """Text that is HTML already; every other string is escaped when it is put into the page."""

    __slots__ = ()


@dataclass(frozen=True)
class Part:
    """A section of the page as built; ``title`` is plain text."""

    anchor: str
    title: str
    body: str


def escape(text: object) -> Html:
    """``text`` as HTML; left as it is if it already is."""
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def join(*parts: str) -> Html:
    """Parts one after the other, escaped where they are not HTML."""
    return Html("\n".join(escape(part) for part in parts if part))


def element(tag: str, content: str, css_class: str = "") -> Html:
    """One element around ``content``."""
    attribute = f' class="{html.escape(css_class)}"' if css_class else ""
    return Html(f"<{tag}{attribute}>{escape(content)}</{tag}>")


def paragraph(text: str) -> Html:
    """Running text."""
    return element("p", text)


def note(text: str) -> Html:
    """A smaller remark under a table or picture."""
    return element("p", text, "note")


def absent(text: str) -> Html:
    """What stands in place of a part that the run does not have (yet)."""
    return element("p", text, "absent")


def heading(text: str) -> Html:
    """A heading inside a section."""
    return element("h3", text)


def details(summary: str, content: str) -> Html:
    """Content that opens on a click."""
    return Html(f"<details>{element('summary', summary)}{escape(content)}</details>")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", *, text: bool = False) -> Html:
    """A table that scrolls sideways on a narrow screen; columns after the first are right-aligned unless ``text``."""
    return grouped_table(header, {"": rows}, caption, text=text)


def grouped_table(
    header: Sequence[str], groups: Mapping[str, Sequence[Sequence[str]]], caption: str = "", *, text: bool = False
) -> Html:
    """A table with a small heading row over each group of rows; none where a group's name is empty."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "\n".join(_group(name, rows, len(header)) for name, rows in groups.items())
    css_class = " ".join(["text"] * text + ["wide"] * (len(header) > WIDE_COLUMNS))
    content = Html(f"<thead><tr>{head}</tr></thead>\n{body}")
    scrolling = Html(f'<div class="scroll">{element("table", content, css_class)}</div>')
    return join(note(caption) if caption else "", scrolling)


def _group(name: str, rows: Sequence[Sequence[str]], n_columns: int) -> Html:
    lines = [f'<tr class="group"><th colspan="{n_columns}" scope="rowgroup">{escape(name)}</th></tr>'] if name else []
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return Html("<tbody>" + "\n".join(lines) + "</tbody>")


def picture(png: bytes, caption: str) -> Html:
    """A PNG inside the page."""
    data = base64.b64encode(png).decode("ascii")
    image = f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
    return Html(f"<figure>{image}{element('figcaption', caption)}</figure>")


def page(title: str, subtitle: str, warning: str, sections: Sequence[Part]) -> str:
    """The whole document: title, warning, table of contents, sections."""
    links = "\n".join(f'<a href="#{html.escape(part.anchor)}">{escape(part.title)}</a>' for part in sections)
    bodies = "\n".join(
        f'<section id="{html.escape(part.anchor)}">{element("h2", part.title)}\n{escape(part.body)}</section>'
        for part in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{element('title', title)}\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"{element('h1', title)}\n{element('p', subtitle, 'subtitle')}\n{element('div', warning, 'warning')}\n"
        f'<nav aria-label="Contents">\n{links}\n</nav>\n{bodies}\n</body>\n</html>\n'
    )
