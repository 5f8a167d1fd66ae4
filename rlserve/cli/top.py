"""``rlserve top``: one run, live in the terminal."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlserve.cli.list import STATE_STYLES, step_of
from rlserve.cli.places import DEFAULT_OUTPUT_DIR, open_run
from rlserve.tracking.colours import OWNER_COLOURS
from rlserve.tracking.hindsight.comparison import CERTAIN
from rlserve.tracking.live import LiveGang, LiveScaleOut, LiveShare, LiveState
from rlserve.tracking.progress import format_duration
from rlserve.tracking.run_view import MoveView, RunView, read_run_view

_EXAMPLES = """\
examples:
  rlserve top                    the newest run, until Ctrl-C or its end
  rlserve top my-run --every 5
  rlserve top --once             one frame, also into a file or a pipe
"""


def run(arguments: Sequence[str]) -> int:
    """Show a run until it ends."""
    parsed = _parser().parse_args(arguments)
    folder, console = open_run(parsed.run, parsed.output_dir), Console()
    view = read_run_view(folder)
    if parsed.once or not console.is_terminal:
        console.print(frame(view))
        return 0
    with Live(frame(view), console=console, auto_refresh=False, screen=True) as live:
        while view.state.state == "running":
            time.sleep(parsed.every)
            view = read_run_view(folder)
            live.update(frame(view), refresh=True)
    console.print(frame(view))
    return 0


def frame(view: RunView) -> RenderableType:
    """One picture of the run."""
    parts: list[RenderableType] = [_heading(view), _numbers(view)]
    if view.live is not None and view.live.share is not None:
        parts.append(_share_of_cluster(view.live.share))
    if view.live is not None:
        parts += [Text(), _gangs(view.live)]
        if view.live.scale_out is not None:
            parts.append(_scale_out(view.live.scale_out))
    if view.decision is not None:
        parts += [Text(), _decision(view.decision)]
    if view.moves:
        parts += [Text(), moves_table(view.moves)]
    return Group(*parts)


def _heading(view: RunView) -> Text:
    state = view.state
    text = Text.assemble(
        (state.name, "bold"), "  ", (state.state, STATE_STYLES[state.state]), f"  step {step_of(state)}"
    )
    if view.live is not None:
        text.append(f"  {format_duration(view.live.time_s)} gone{' (modelled)' if view.is_paced else ''}", "dim")
        if view.live.status != "training":
            text.append(f"  {view.live.status}", "yellow")
    if state.time_left_s is not None:
        text.append(f"  about {format_duration(state.time_left_s)} left", "dim")
    if state.server is not None:
        text.append(f"  clients: {state.server}", "dim")
    return text


def _numbers(view: RunView) -> Table:
    """Two rows of numbers: how far each side is ahead, and how fast it is."""
    live, last = view.live, view.points[-1] if view.points else None
    queue = view.state.queue_length if live is None else live.queue_length
    buffered = None if last is None else last.num_buffered
    table = Table.grid(padding=(0, 2))
    table.add_row(
        _labelled("queue", _number(queue, ",.0f")),
        _labelled("in flight", "-" if live is None else f"{live.num_in_flight:,}"),
        _labelled("trainer waits", _share(view.wait_share) + (" (now)" if live and live.trainer_waiting else "")),
        _labelled("buffer", _number(buffered if live is None else live.num_buffered, ",.0f")),
    )
    table.add_row(
        _labelled("generated", f"{_number(view.generated_tokens_per_s, ',.0f')} tokens/s"),
        _labelled("trained", f"{_number(view.trained_tokens_per_s, ',.0f')} tokens/s"),
        _labelled("reward", _number(view.state.reward, ".3f")),
        _labelled("KL", _number(view.state.kl, ".4f")),
    )
    return table


def _scale_out(grows: LiveScaleOut) -> Text:
    """What is asked of the cluster, and what all slots cost an hour."""
    slots = ", ".join(
        f"{name} {grows.present.get(name, 0)} of {grows.asked.get(name, 0)} asked for, at most {most}"
        for name, most in grows.max_slots.items()
    )
    text = _labelled("grows by", slots)
    if grows.money_per_hour is not None:
        limit = "" if grows.budget_per_hour is None else f" of {grows.budget_per_hour:g}"
        text.append_text(_labelled("   an hour", f"{grows.money_per_hour:g}{limit}"))
    return text


def _share_of_cluster(share: LiveShare) -> Text:
    """Who has the slots of a cluster that several runs share."""
    others = ", ".join(f"{name} {count}" for name, count in share.runs.items()) or "nobody"
    return Text.assemble(
        _labelled("slots lent", str(share.num_lent)),
        _labelled("  borrowed", str(share.num_borrowed)),
        _labelled("  others have", others),
    )


def _gangs(live: LiveState) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("gang", "role", "weights", "running", "waiting", "KV cache", "tokens/s"):
        table.add_column(heading, justify="left" if heading in ("gang", "role") else "right", no_wrap=True)
    for gang in live.gangs:
        table.add_row(
            Text(gang.id if gang.id.startswith(gang.type) else f"{gang.id} ({gang.type})"),
            _role(gang),
            "-" if gang.version is None else f"v{gang.version}",
            _number(gang.num_running, "d"),
            _number(gang.num_waiting, "d"),
            _share(gang.kv_cache_usage),
            _number(gang.tokens_per_s, ",.0f"),
        )
    return table


def _role(gang: LiveGang) -> Text:
    role = Text(gang.state.replace("_", " "), OWNER_COLOURS[gang.owner])
    return role if gang.worker_state is None else role.append(f", {gang.worker_state}", "red")


def _decision(decision: MoveView) -> Text:
    text = Text.assemble(("last decision ", "dim"), decision.text, f": {decision.reason}")
    if decision.predicted is not None:
        text.append(f"  predicted {decision.predicted:+.1%}", "bold")
    return text


def moves_table(moves: Sequence[MoveView]) -> Table:
    """Reasons are cut where there is no room: ``rlserve explain`` has them in full."""
    table = Table(box=None, header_style="dim", pad_edge=False, expand=True)
    for heading in ("at", "last moves", "took", "predicted", "realised", "why"):
        words = heading in ("last moves", "why")
        table.add_column(
            heading,
            justify="left" if words else "right",
            no_wrap=heading != "last moves",  # of several gangs at once: they take more lines, not the numbers' room
            ratio=1 if heading == "why" else None,
        )
    for move in moves:
        table.add_row(
            format_duration(move.time_s),
            Text(move.text),
            "-" if move.duration_s is None else f"{move.duration_s:.1f} s",
            _number(move.predicted, "+.1%"),
            _realised(move),
            Text(move.reason, "dim"),
        )
    return table


def _realised(move: MoveView) -> Text:
    """With its uncertainty; in a colour where it is no chance."""
    if move.realised is None or move.realised_error is None:
        return Text("-")
    error = CERTAIN * move.realised_error
    style = "" if abs(move.realised) < error else "red" if move.realised < 0 else "green"
    return Text(f"{move.realised:+.1%} ± {error:.1%}", style)


def _labelled(label: str, value: str) -> Text:
    return Text.assemble((f"{label} ", "dim"), value)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve top",
        description="Show a run live, from its folder alone: its gangs with role, weights, samples, KV cache and "
        "tokens/s; queue, buffer, both sides' rates, the trainer's wait; the last decision, and what the last moves "
        "were to gain and gained.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", default="latest", metavar="RUN", help="its folder, its name, or latest")
    parser.add_argument("--once", action="store_true", help="print one frame and end; so it is without a terminal")
    parser.add_argument("--every", type=_seconds, default=1.0, metavar="S", help="seconds between two looks (1)")
    parser.add_argument(
        "--output-dir", default=DEFAULT_OUTPUT_DIR, metavar="DIR", help=f"where runs lie ({DEFAULT_OUTPUT_DIR})"
    )
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("must be from 0.1 to 3600")
    return seconds
