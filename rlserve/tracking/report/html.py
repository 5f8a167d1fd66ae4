"""``report.html``: the same picture with a mouse in it, and some answers; one file that needs no network.

plotly.js and the curves are in the page, compressed: the browser unpacks them (``DecompressionStream``, in browsers
from 2023 on). Of the builds of plotly.js the smallest will do, ``basic``, which lies beside this file as its authors
publish it, under the MIT licence; the one that comes with plotly for Python has 4.9 MB.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from importlib.resources import files
from pathlib import Path

from rlserve.tracking import colours
from rlserve.tracking.answers import Answer
from rlserve.tracking.report import LIBRARY
from rlserve.tracking.report.figure import draw
from rlserve.tracking.report.report_data import ReportData

MAX_NUM_CHARACTERS = 2000
"""Of a text in the table of answers; all of it is in ``answers.jsonl``."""
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: {text}; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ margin: 0 0 1rem; }}
h2 {{ font-size: 1.05rem; margin: 2rem 0 .5rem; }}
.facts {{ display: flex; flex-wrap: wrap; gap: .8rem 2.4rem; margin: 0 0 1rem; }}
.facts b {{ display: block; font-size: 1.2rem; }}
.facts span, .summary td:first-child, th {{ color: {muted}; }}
td, th {{ padding: .15rem 1.5rem .15rem 0; vertical-align: top; text-align: left; font-weight: normal; }}
.answers td {{ border-top: 1px solid {grid}; white-space: pre-wrap; overflow-wrap: anywhere; }}
.answers td:first-child, .answers td:last-child {{ white-space: nowrap; overflow-wrap: normal; }}
.answers td:nth-child(2) {{ min-width: 12rem; }}
</style></head><body>
<h1>{title}</h1>
<div class="facts">{facts}</div>
{notes}
<div id="figure"><noscript>This figure needs JavaScript; report.png shows the same.</noscript></div>
{answers}
<h2>summary</h2>
<table class="summary">{summary}</table>
<script id="library" type="text/plain">{library}</script>
<script id="curves" type="text/plain">{curves}</script>
<script>
const unpack = (id) => {{
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}};
(async () => {{
  const script = document.createElement("script");
  script.textContent = await unpack("library");
  document.head.append(script);
  const {{ data, layout }} = JSON.parse(await unpack("curves"));
  await Plotly.newPlot("figure", data, layout, {{ displaylogo: false, responsive: true }});
}})().catch((error) => {{
  document.getElementById("figure").textContent = `The figure cannot be drawn here (${{error}}); report.png shows it.`;
}});
</script>
</body></html>
"""


def write_html(data: ReportData, path: Path) -> None:
    """Write the page."""
    library = files("rlserve.tracking.report").joinpath(LIBRARY).read_bytes()
    page = PAGE.format(
        title=html.escape(data.name),
        text=colours.TEXT,
        muted=colours.MUTED,
        grid=colours.GRID,
        facts="".join(
            f"<div><b>{html.escape(much)}</b><span>{html.escape(what)}</span></div>" for what, much in data.headline
        ),
        notes="".join(f"<p>{html.escape(note)}</p>" for note in data.notes),
        answers=_answers_table(data.answers),
        summary="".join(
            f"<tr><td>{html.escape(what)}</td><td>{html.escape(much)}</td></tr>" for what, much in data.summary
        ),
        library=_as_text(library),
        curves=_as_text(gzip.compress(draw(data).to_json().encode("utf-8"))),
    )
    path.write_text(page, encoding="utf-8")


def _as_text(packed: bytes) -> str:
    return base64.b64encode(packed).decode("ascii")


def _answers_table(answers: tuple[Answer, ...]) -> str:
    if not answers:
        return ""
    header = "".join(f"<th>{name}</th>" for name in ("reward", "prompt", "answer", "reference", "ended"))
    rows = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in _cells(each))}</tr>" for each in answers)
    return (
        f"<h2>some answers of step {answers[0].step}, the worst first</h2>\n"
        f'<table class="answers"><tr>{header}</tr>{rows}</table>'
    )


def _cells(answer: Answer) -> tuple[str, ...]:
    reference = answer.reference
    return (
        "-" if answer.reward is None else f"{answer.reward:.4g}",
        answer.prompt,
        answer.response,
        reference if isinstance(reference, str) else json.dumps(reference, ensure_ascii=False),
        "by itself" if answer.finish_reason == "stop" else "cut",
    )


def _cell(text: str) -> str:
    shown = text if len(text) <= MAX_NUM_CHARACTERS else text[:MAX_NUM_CHARACTERS] + " …"
    return html.escape(shown)
