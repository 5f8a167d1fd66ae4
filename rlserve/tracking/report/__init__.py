"""The one-page picture of a run, made from the files in its folder alone: ``report.png`` and ``report.html``.

::

    metrics.jsonl  decisions.jsonl  events.jsonl  answers.jsonl  config.yaml  summary.json
        └──────────────┴──────────────┴──── data.py ────┴─────────────┴───────────┘
                              series.py, slots.py │ ReportData
                                                  ├──▶ panels.py: panels of curves, as plain data
               png.py, png_panels.py (matplotlib) ◀─┴─▶ figure.py (plotly), html.py
"""

from __future__ import annotations

from rlserve.tracking.run_folder import RunFolder

LIBRARY = "plotly-basic-4.1.1.min.js.gz"
"""plotly.js, as it lies beside this file."""


def build_report(folder: RunFolder) -> None:
    """Write ``report.png`` and ``report.html``; for a run that ended, was broken off or still goes on.

    Raises:
        DataError: a file of the run is damaged.
    """
    # Imported where used: drawing needs half a second of imports that a run does not need before its end.
    from rlserve.tracking.report.html import write_html
    from rlserve.tracking.report.png import write_png
    from rlserve.tracking.report.report_data import read_report_data

    data = read_report_data(folder)
    write_png(data, folder.report_png)
    write_html(data, folder.report_html)
