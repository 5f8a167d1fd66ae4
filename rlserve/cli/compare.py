"""``rlserve compare``: several runs in one picture, their numbers side by side, and what differs in what they ran."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlserve.cli.list import step_of
from rlserve.cli.places import DEFAULT_OUTPUT_DIR, open_run
from rlserve.errors import UserError
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.run_state import read_run_state
from rlserve.tracking.summary import RunSummary, format_score, read_summary, summary_rows

OUTPUT = "comparison.png"
LEFT_OUT = frozenset(("held-out score", "training steps"))
"""Of the summary: they are told for runs that have none, too."""
_ABSENT = "-"
_EXAMPLES = """\
examples:
  rlserve compare rlhf-20260101-120000 rlhf-20260101-130000
  rlserve compare runs/a runs/b runs/c --output abc.png
  rlserve compare a b --json | jq .differing_keys
"""


def run(arguments: Sequence[str]) -> int:
    """Draw the picture and print both tables."""
    parsed = _parser().parse_args(arguments)
    folders = [open_run(name, parsed.output_dir) for name in parsed.runs]
    labels = labels_of(folders)
    numbers = {label: numbers_of(folder) for label, folder in zip(labels, folders, strict=True)}
    configs = {label: config_of(folder) for label, folder in zip(labels, folders, strict=True)}
    differing = differing_values(configs)
    picture = _draw(folders, labels, Path(parsed.output))
    if parsed.json:
        content = {"picture": str(picture), "numbers": numbers, "differing_keys": differing}
        sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")
        return 0
    console = Console()
    console.print(_table("", numbers_by_name(numbers), labels))
    if differing:
        console.print()
        console.print(_table("configuration", differing, labels))
    else:
        console.print("\nthe configurations are alike")
    console.print(Text(str(picture)), soft_wrap=True)
    return 0


def labels_of(folders: Sequence[RunFolder]) -> list[str]:
    """A different name for each run: its folder's, or the path where two are alike.

    Raises:
        UserError: a run is named twice, or they are too few or too many.
    """
    if len(folders) < 2:
        raise UserError("name at least two runs to compare")
    paths = [str(folder.path) for folder in folders]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is named twice")
    names = [folder.name for folder in folders]
    return [name if names.count(name) == 1 else path for name, path in zip(names, paths, strict=True)]


def numbers_of(folder: RunFolder) -> dict[str, str]:
    """What a run came to, or has come to by now, by name."""
    state, summary = read_run_state(folder), read_summary(folder)
    return {
        "state": state.state,
        "step": step_of(state),
        "held-out before": _score(state.held_out_before),
        "held-out after": _score(state.held_out_after),
        "last reward": _ABSENT if state.reward is None else f"{state.reward:.3f}",
        **_of_summary(summary),
    }


def config_of(folder: RunFolder) -> dict[str, Any]:
    """The configuration of a run by dotted key; empty where none was saved."""
    import yaml

    from rlserve.config.keys import flatten

    if not folder.config_file.exists():
        return {}
    config = yaml.safe_load(folder.config_file.read_text(encoding="utf-8"))
    return {key: value for key, value in flatten(config) if key not in ("name", "defaults", "output_dir")}


def differing_values(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Dotted keys that are not the same in all, with the value of each run, in order."""
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    rows = {key: [_value(config, key) for config in configs.values()] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def numbers_by_name(numbers: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """Rows of the table: what, and how much for each run."""
    names = dict.fromkeys(name for values in numbers.values() for name in values)
    return {name: [values.get(name, _ABSENT) for values in numbers.values()] for name in names}


def _draw(folders: Sequence[RunFolder], labels: Sequence[str], path: Path) -> Path:
    # Imported where used: drawing needs half a second of imports.
    from rlserve.tracking.report.comparison import MAX_NUM_RUNS, write_comparison
    from rlserve.tracking.report.report_data import read_report_data

    if len(folders) > MAX_NUM_RUNS:
        raise UserError(f"at most {MAX_NUM_RUNS} runs can be told apart in one picture, got {len(folders)}")
    runs = [replace(read_report_data(folder), name=label) for folder, label in zip(folders, labels, strict=True)]
    try:
        write_comparison(runs, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another --output") from error
    except ValueError as error:  # an ending that matplotlib does not know
        raise UserError(f"{path}: {error}") from error
    return path.absolute()


def _of_summary(summary: RunSummary | None) -> dict[str, str]:
    return {} if summary is None else {what: much for what, much in summary_rows(summary) if what not in LEFT_OUT}


def _score(value: float | None) -> str:
    return _ABSENT if value is None else format_score(value, num_digits=3)


def _value(config: Mapping[str, Any], key: str) -> str:
    if key not in config:
        return _ABSENT
    value = config[key]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table(title: str, rows: Mapping[str, Sequence[str]], labels: Sequence[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(title, style="dim", overflow="fold")
    for label in labels:
        table.add_column(Text(label), overflow="fold")
    for name, values in rows.items():
        table.add_row(name, *map(Text, values))
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve compare",
        description="Draw the curves of several runs into one picture, over steps and over time, and print their "
        "numbers and the configuration keys that differ.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="two or more: folders, names, or latest")
    parser.add_argument(
        "--output", default=OUTPUT, metavar="FILE", help=f"where the picture goes, .png, .svg or .pdf ({OUTPUT})"
    )
    parser.add_argument(
        "--output-dir", default=DEFAULT_OUTPUT_DIR, metavar="DIR", help=f"where runs lie ({DEFAULT_OUTPUT_DIR})"
    )
    parser.add_argument("--json", action="store_true", help="print numbers and differing keys as JSON")
    return parser
