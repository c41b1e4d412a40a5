"""The report's HTML from the templates beside this file: escaped by default, one page, no script, nothing loaded."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup as Html  # text that is HTML already; every other text is escaped

WIDE_COLUMNS = 6  # a table with more has narrower columns, an interval under its mean

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_PARTS = TEMPLATES.get_template("parts.html").module


def join(*parts: str) -> Html:
    """Parts one after the other, escaped where they are not HTML."""
    return Html("\n").join(part for part in parts if part)


def element(tag: str, content: str, css_class: str = "") -> Html:
    """One element around ``content``."""
    return _PARTS.element(tag, content, css_class)  # type: ignore[attr-defined]


def paragraph(text: str) -> Html:
    """Running text."""
    return element("p", text)


def note(text: str) -> Html:
    """A smaller remark under a table or picture."""
    return element("p", text, "note")


def absent(text: str) -> Html:
    """What stands in place of a part that the run does not have (yet)."""
    return element("p", text, "absent")


def bullets(items: Iterable[str], css_class: str = "") -> Html:
    """A list with a bullet for each item."""
    return element("ul", join(*(element("li", item) for item in items)), css_class)


def heading(text: str) -> Html:
    """A heading inside a section."""
    return element("h3", text)


def details(summary: str, content: str) -> Html:
    """Content that opens on a click."""
    return _PARTS.details(summary, content)  # type: ignore[attr-defined]


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]] | Mapping[str, Sequence[Sequence[str]]],
    caption: str = "",
    *,
    text: bool = False,
) -> Html:
    """A table that scrolls sideways on a narrow screen; columns after the first are right-aligned unless ``text``.

    ``rows`` may be groups of rows, each with its name as a small heading over it; a group without a name has none.
    """
    groups = rows if isinstance(rows, Mapping) else {"": rows}
    css_class = " ".join(["text"] * text + ["wide"] * (len(header) > WIDE_COLUMNS))
    return _PARTS.table(header, groups, caption, css_class)  # type: ignore[attr-defined]


def picture(png: bytes, caption: str) -> Html:
    """A PNG inside the page."""
    return _PARTS.picture(base64.b64encode(png).decode("ascii"), caption)  # type: ignore[attr-defined]
