"""The story of a run's decisions in words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import groupby

from rlserve.tracking.explanation.story import Explanation, Hold, Move

_WIDTH = 110
_INDENT = " " * 8
_MAX_REASONS = 3
"""Of a time without moves, unless all are asked for."""
_SHORT = 0.05
"""Share of a time without moves below which a reason is left out."""
_WAITED_S = 1.0
"""A shorter wait for the end of a step is not told."""


def describe(explanation: Explanation, *, in_full: bool = False) -> str:
    """A summary, then every move with what came of it, and the times between them; ``in_full`` has every hold."""
    lines = [*_summary(explanation), ""]
    for is_move, entries in groupby(explanation.entries, key=lambda entry: isinstance(entry, Move)):
        if is_move:
            for entry in entries:
                assert isinstance(entry, Move)
                lines += [*_move(entry, is_running=not explanation.is_over), ""]
        else:
            holds = [entry for entry in entries if isinstance(entry, Hold)]
            lines += [*(_each(holds) if in_full else _together(holds)), ""]
    return "\n".join(lines).rstrip() + "\n"


def clock(time_s: float) -> str:
    """``3:07``, ``1:02:33``."""
    minutes, seconds = divmod(round(time_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _summary(explanation: Explanation) -> Iterator[str]:
    moves = explanation.moves
    state = "so far" if not explanation.is_over else "in all"
    steps = _count(explanation.num_steps, "training step")
    yield f"{explanation.name}: policy {explanation.policy}, {steps} in {clock(explanation.end_s)} {state}"
    if not explanation.entries:
        yield "The manager has decided nothing yet."
        return
    if not moves:
        yield "Nothing moved."
        return
    to_rollout = sum(move.action == "to_rollout" for move in moves)
    pauses_s = [move.trainer_pause_s for move in moves if move.trainer_pause_s is not None]
    yield (
        f"{_count(len(moves), 'move')}: {to_rollout} to rollout, {len(moves) - to_rollout} to training. "
        f"They took {explanation.moving_s:.1f} s in all, {explanation.moving_share:.0%} of the time"
        + (f", and training stood still for {sum(pauses_s):.1f} s of it." if pauses_s else ".")
    )
    yield from _sums(moves)
    yield from _verdict(explanation)


def _sums(moves: tuple[Move, ...]) -> Iterator[str]:
    judged = [move for move in moves if move.gain is not None]
    predicted = [move for move in judged if move.predicted_rate_after is not None]
    if predicted:
        expected = sum(
            ((move.predicted_rate_after or 0.0) - (move.predicted_rate_before or 0.0)) * move.lasted_s
            - (move.predicted_cost or 0.0)
            for move in predicted
        )
        came = sum(move.gain or 0.0 for move in predicted)
        yield f"Each until the next, less costs, they were to bring {_groups(expected)}, and brought {_groups(came)}."
    if len(judged) < len(moves):
        number = len(moves) - len(judged)
        which = "None" if number == len(moves) else f"{number}"
        verb = "could" if number == len(moves) else "could not"
        yield f"{which} of them {verb} be judged: too few training steps came before or after. So there is no verdict."


def _verdict(explanation: Explanation) -> Iterator[str]:
    gain, total = explanation.gain_against_start, explanation.num_groups
    if gain is None:
        return
    share = f" ({_signed(100 * gain / (total - gain))} %)" if total and total > gain else ""
    of_all = f"; {total} were trained in all" if total else ""
    yield f"Verdict: {_groups(gain)}{share} than with the split of the start{of_all}."


def _move(move: Move, *, is_running: bool) -> Iterator[str]:
    role = "rollout" if move.action == "to_rollout" else "training"
    yield (
        f"{clock(move.time_s):>7} {move.slot_id} to {role}, after step {move.step} "
        f"(before it {_split(move.num_train, move.num_rollout)})"
    )
    yield from _paragraph("why", move.reason)
    if move.predicted_rate_after is not None and move.predicted_rate_before is not None:
        more = "" if move.horizon_s is None else f"; {_groups(move.predicted_gain)} in {move.horizon_s:g} s"
        spent = f", for {move.predicted_cost:.1f} that moving costs" if move.predicted_cost is not None else ""
        yield from _paragraph("expected", _rates(move.predicted_rate_before, move.predicted_rate_after) + more + spent)
    yield from _paragraph("came", _came(move, is_running=is_running))


def _came(move: Move, *, is_running: bool) -> str:
    if move.duration_s is None:
        return "it is under way" if is_running else "the slot did not get there"
    took = f"it took {move.duration_s:.1f} s"
    if move.waited_s >= _WAITED_S:
        took = f"after {move.waited_s:.1f} s at its old work, until a training step ended, {took}"
    if move.trainer_pause_s is not None:
        took += f", of which training stood still for {move.trainer_pause_s:.1f} s"
    if move.rate_before is None or move.rate_after is None or move.cost is None or move.gain is None:
        return f"{took}; too few training steps before or after it to judge it"
    load = ""
    if move.load is not None and abs(move.load - 1.0) >= 0.02:
        load = f" at the load of before, which became {move.load:.2f} times as heavy"
    cost = f"{move.cost:.1f} prompt groups were lost by it" if move.cost > 0.05 else "no prompt group was lost by it"
    return (
        f"{_rates(move.rate_before, move.rate_after)}{load}; {took}, and {cost}. "
        f"In the {clock(move.lasted_s)} until the next move it brought {_groups(move.gain)} in all"
    )


def _together(holds: list[Hold]) -> Iterator[str]:
    begin_s, end_s = holds[0].begin_s, holds[-1].end_s
    yield f"{clock(begin_s):>7} – {clock(end_s)} nothing moved: {_split(holds[-1].num_train, holds[-1].num_rollout)}"
    total_s: dict[str, float] = {}
    words: dict[str, str] = {}
    for hold in holds:
        total_s[hold.grounds] = total_s.get(hold.grounds, 0.0) + hold.end_s - hold.begin_s
        words[hold.grounds] = hold.reason
    longest = sorted(total_s, key=lambda grounds: -total_s[grounds])
    shown = [each for each in longest[:_MAX_REASONS] if total_s[each] >= _SHORT * (end_s - begin_s)] or longest[:1]
    for grounds in shown:
        of_it = f"{total_s[grounds]:.0f} s: " if len(shown) > 1 else ""
        yield from _paragraph("", of_it + words[grounds])


def _each(holds: list[Hold]) -> Iterator[str]:
    for hold in holds:
        split = _split(hold.num_train, hold.num_rollout)
        yield f"{clock(hold.begin_s):>7} – {clock(hold.end_s)} nothing moved: {split}"
        yield from _paragraph("", hold.reason)
        if hold.rate_now is not None and hold.rate_after is not None:
            yield from _paragraph("best move left", _rates(hold.rate_now, hold.rate_after))


def _paragraph(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        f"{label}: {text}" if label else text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT + "  "
    )


def _rates(before: float, after: float) -> str:
    change = f" ({_signed(100 * (after / before - 1.0))} %)" if before > 0 else ""
    return f"{before:.3g} → {after:.3g} prompt groups a second{change}"


def _split(num_train: int, num_rollout: int) -> str:
    return f"{num_train} train, {num_rollout} roll out"


def _groups(number: float | None) -> str:
    amount = number or 0.0
    text = f"{abs(amount):.1f}" if abs(amount) < 10 else f"{abs(amount):.0f}"
    return f"{text} prompt groups {'fewer' if amount < 0 else 'more'}"


def _signed(percent: float) -> str:
    return f"{percent:+.1f}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
