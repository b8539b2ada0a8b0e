"""One self-contained ``atlas.html``: a section for each kind of result that a folder holds, then its receipts."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from taskatlas.errors import BadInput
from taskatlas.store import Receipt, load_receipts, output_folder

PAGE = "atlas.html"

_STYLE = """
:root { color-scheme: light; --ink: #1d2733; --quiet: #5d6b7a; --line: #dfe5ea; --accent: #1b6ca8; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); }
body { max-width: 1080px; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.9rem; margin: 0; } h2 { font-size: 1.3rem; margin: 2.8rem 0 .4rem; }
p.lead, figcaption, footer { color: var(--quiet); }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th { text-align: left; border-bottom: 2px solid var(--line); } td { border-bottom: 1px solid var(--line); }
th, td { padding: .3rem .8rem .3rem 0; }
td { overflow-wrap: break-word; } td.number { white-space: nowrap; } td.number, th.number { text-align: right; }
.number + :not(.number) { padding-left: 1.6rem; }
figure { margin: 1rem 0; overflow-x: auto; } figure > div { min-width: 760px; } code { font-size: .9em; }
nav a { margin-right: 1.2rem; color: var(--accent); }
"""
_SPACE_LEAD = "How checkpoints relate, which few stand for the rest, and what that is worth."
_PATHS_LEAD = "How trainings moved through the space of predictions, how far, and which of them alike."
_MERGE_LEAD = "How well merged models do what they were merged for."
LAYOUT = {
    "template": "plotly_white",
    "margin": {"l": 10, "r": 10, "t": 50, "b": 40},
    "font": {"family": "system-ui, sans-serif", "size": 13},
}
"""Of every figure."""
_TASKS_LEAD = "Which tasks networks agree on, what these are, and the splits that break a network."
# The page is its reader's own: no button that would upload a figure.
_FIGURE_CONFIG = {"displaylogo": False, "showSendToCloud": False, "responsive": True}


@dataclass(frozen=True)
class Section:
    """A heading, what there is to see in one or two sentences, figures, and a table; and the file that it shows."""

    title: str
    text: str
    figures: Sequence[Any] = ()  # plotly figures
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    source: Path | None = None


def write_report(folder: Path | str, out: Path | None = None) -> Path:
    """Joins what other commands left in ``folder`` in one page; pictures can be zoomed and say their values on hover.

    Args:
        folder: where ``map``, ``select``, ``transfer``, ``trace``, ``evaluate``, ``agree``, ``discover`` or ``split``
            wrote.
        out: folder for the page; None takes ``folder``.

    Returns:
        The path of ``atlas.html``, which has a receipt of its own: ``check`` notices when a result changed since.

    Raises:
        BadInput: the folder is missing or holds nothing to report, or a result in it is damaged.
    """
    from taskatlas.report.merge import merge_sections
    from taskatlas.report.paths import paths_sections
    from taskatlas.report.space import space_sections
    from taskatlas.report.tasks import tasks_sections

    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder. Give one that `taskatlas map` or `taskatlas trace` wrote.")
    rooms = [
        (_SPACE_LEAD, space_sections(folder)),
        (_PATHS_LEAD, paths_sections(folder)),
        (_MERGE_LEAD, merge_sections(folder)),
        (_TASKS_LEAD, tasks_sections(folder)),
    ]
    sections = [section for _, found in rooms for section in found]
    if not sections:
        raise BadInput(
            f"{folder} holds no results to report. Run `taskatlas map ZOO --probe PROBE --out {folder}`, "
            f"`taskatlas trace RUNS --out {folder}` or `taskatlas discover DATA --out {folder}` first."
        )
    lead = " ".join(sentence for sentence, found in rooms if found)
    receipts = [one for one in load_receipts(folder) if one.made_by != "report"]
    out = folder if out is None else out
    sources = [one.source for one in sections if one.source is not None]
    inputs = {one.made_by: one.digest for one in receipts}
    with output_folder(out, "report", inputs=inputs, settings={}, sources=sources) as staging:
        page = render_page(f"Atlas of {folder.resolve().name}", lead, sections, receipts)
        (staging / PAGE).write_text(page, encoding="utf-8")
    return out / PAGE


def render_page(title: str, lead: str, sections: Sequence[Section], receipts: Sequence[Receipt]) -> str:
    """The page as text, with plotly's script inside; the lead is the line under its title."""
    from plotly.offline import get_plotlyjs

    links = "".join(f'<a href="#{_anchor(one.title)}">{escape(one.title)}</a>' for one in sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style>'
        f"<script>{get_plotlyjs()}</script></head><body>"
        f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p><nav>{links}</nav>'
        + "".join(_render_section(one) for one in sections)
        + _render_receipts(receipts)
        + "</body></html>\n"
    )


def _render_section(section: Section) -> str:
    anchor = _anchor(section.title)
    figures = "".join(
        f"<figure>{_render_figure(one, f'{anchor}-{number}')}</figure>" for number, one in enumerate(section.figures)
    )
    table = _render_table(section.columns, section.rows) if section.rows else ""
    return (
        f'<section id="{anchor}"><h2>{escape(section.title)}</h2>'
        f"<p>{escape(section.text)}</p>{figures}{table}</section>"
    )


def _render_figure(figure: Any, name: str) -> str:
    text: str = figure.to_html(
        full_html=False, include_plotlyjs=False, div_id=name, config=_FIGURE_CONFIG, auto_play=False
    )
    return text


def _render_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def cell(tag: str, position: int, value: Any) -> str:
        number = ' class="number"' if any(isinstance(row[position], int | float) for row in rows) else ""
        text = f"{value:.3f}" if isinstance(value, float) else "–" if value is None else str(value)
        return f"<{tag}{number}>{escape(text)}</{tag}>"

    head = "".join(cell("th", position, column) for position, column in enumerate(columns))
    body = "".join(
        "<tr>" + "".join(cell("td", position, value) for position, value in enumerate(row)) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _render_receipts(receipts: Sequence[Receipt]) -> str:
    if not receipts:
        return ""
    rows = [
        [one.made_by, one.created, f"{one.seconds:.1f} s", "–" if one.seed is None else one.seed, one.digest[:12]]
        for one in receipts
    ]
    versions = ", ".join(f"{name} {version}" for name, version in receipts[-1].versions.items())
    return (
        "<footer><h2>How this was made</h2>"
        + _render_table(["command", "at", "took", "seed", "digest"], rows)
        + f"<p>{escape(versions)}. <code>taskatlas check</code> verifies these receipts.</p></footer>"
    )


def _anchor(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())
