"""The story of a run's decisions in words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from rlserve.tracking.explanation.story import Explanation, Hold, grounds
from rlserve.tracking.explanation.verdict import change, verdict
from rlserve.tracking.hindsight.judgement import Judged
from rlserve.tracking.hindsight.series import Move, Series

_WIDTH = 110
_INDENT = " " * 8
_MAX_REASONS = 3
"""Of a time without moves, or of a series, unless all are asked for."""
_SHORT = 0.05
"""Share of a time without moves below which a reason is left out."""
_WAITED_S = 1.0
"""A shorter wait for the end of a step is not told."""


def describe(explanation: Explanation, *, in_full: bool = False) -> str:
    """A summary, then every series of moves with what came of it, and the times between; ``in_full`` has every hold."""
    lines = [*_summary(explanation), ""]
    within = iter(explanation.within)
    for is_hold, entries in groupby(explanation.entries, key=lambda entry: isinstance(entry, Hold)):
        if is_hold:
            holds = [entry for entry in entries if isinstance(entry, Hold)]
            lines += [*(_each(holds) if in_full else _together(holds)), ""]
            continue
        for entry in entries:
            assert isinstance(entry, Judged)
            lines += [*_series(entry, explanation), *(_each(next(within)) if in_full else ()), ""]
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
    modelled = ", times as modelled" if explanation.is_paced else ""
    policy = "both roles in turn" if explanation.turns_s else f"policy {explanation.policy}"
    yield f"{explanation.name}: {policy}, {steps} in {clock(explanation.end_s)} {state}{modelled}"
    if explanation.host_was_bottleneck:
        yield "This machine was too slow for the pace, so nothing here counts: raise pool.pacing.dilation."
    if explanation.wait_share is not None:
        busy = (
            "" if explanation.busy_share is None else f", the replicas computed {explanation.busy_share:.0%} of theirs"
        )
        yield f"The trainer waited {explanation.wait_share:.0%} of its time for answers{busy}."
    if turns_s := explanation.turns_s:
        share = sum(turns_s) / max(explanation.end_s, 1e-9)
        yield f"All slots changed sides {len(turns_s)} times, in {sum(turns_s):.1f} s in all, {share:.0%} of the time."
        return
    if not explanation.entries:
        yield "The manager has decided nothing yet."
        return
    if moves:
        yield _moves(explanation, moves)
        judged = [each for each in explanation.judgement.series if each.after is not None]
        if len(judged) < len(explanation.judgement.series):
            number = "None" if not judged else f"{len(judged)}"
            yield f"{number} of {len(explanation.judgement.series)} series of moves can be judged by itself."
    else:
        yield "Nothing moved."
    for sentence in verdict(explanation.judgement):
        yield from textwrap.wrap(sentence, _WIDTH)


def _moves(explanation: Explanation, moves: Sequence[Move]) -> str:
    to_rollout = sum(move.action == "to_rollout" for move in moves)
    pauses_s = [move.trainer_pause_s for move in moves if move.trainer_pause_s is not None]
    stood = f", and training stood still for {sum(pauses_s):.1f} s of it." if pauses_s else "."
    return (
        f"{_count(len(moves), 'move')}: {to_rollout} to rollout, {len(moves) - to_rollout} to training. "
        f"They took {explanation.moving_s:.1f} s in all, {explanation.moving_share:.0%} of the time{stood}"
    )


def _series(judged: Judged, explanation: Explanation) -> Iterator[str]:
    series, first = judged.series, judged.series.moves[0]
    role = "rollout" if first.action == "to_rollout" else "training"
    split = f"{first.num_train} train, {first.num_rollout} roll out"
    if len(series.moves) == 1:
        yield f"{clock(first.time_s):>7} {first.slot_id} to {role}, after step {first.step} (before it {split})"
    else:
        span = f"{clock(series.begin_s):>7} – {clock(series.end_s)}"
        yield f"{span} {len(series.moves)} moves to {role}, from step {first.step} on (before them {split})"
        yield from _paragraph("", ", ".join(f"{move.slot_id} at {clock(move.time_s)}" for move in series.moves))
    yield from _reasons(series)
    predicted = series.predicted_change
    if predicted is not None:
        yield from _paragraph("expected", _expected(series, predicted))
    yield from _paragraph("came", _came(judged, explanation))


def _reasons(series: Series) -> Iterator[str]:
    """The same reason with other numbers is told once."""
    told: dict[str, str] = {}
    for move in series.moves:
        told.setdefault(grounds(move.reason), move.reason)
    for index, reason in enumerate(list(told.values())[:_MAX_REASONS]):
        yield from _paragraph("why" if index == 0 else "and", reason)


def _expected(series: Series, predicted: float) -> str:
    first = series.moves[0]
    if len(series.moves) > 1:
        return f"the rate {change(predicted)} by all of them together"
    more = "" if first.gain is None else f"; {_groups(first.gain)} in {first.horizon_s:.0f} s"
    spent = "" if first.cost is None else f", for {first.cost:.1f} that moving costs"
    return f"{_rates(first.rate_now or 0.0, first.rate_after or 0.0)}{more}{spent}"


def _came(judged: Judged, explanation: Explanation) -> str:
    series = judged.series
    arrived = [move for move in series.moves if move.duration_s is not None]
    if len(arrived) < len(series.moves) and (len(series.moves) == 1 or not arrived):
        is_last = series.moves[-1] is explanation.moves[-1]
        if is_last and not explanation.is_over:
            return "it is under way"
        return "the slot did not get there" if series.moves[-1].has_left else "it was called off before it began"
    one, verb = len(series.moves) == 1, "took"
    took = f"{'it' if one else 'they'} {verb} {sum(move.duration_s or 0.0 for move in arrived):.1f} s"
    pauses_s = [move.trainer_pause_s for move in arrived if move.trainer_pause_s is not None]
    took += f", of which training stood still for {sum(pauses_s):.1f} s" if pauses_s else ""
    waited_s = sum(move.waited_s for move in arrived)
    if waited_s >= _WAITED_S:
        took = f"after {waited_s:.1f} s at {'its' if one else 'their'} old work, until a training step ended, {took}"
    if judged.after is None or judged.whole is None:
        return f"{took}; what {'it' if one else 'they'} brought cannot be told: {_obstacle(judged, explanation)}"
    before = "" if judged.rate_before is None else f"{judged.rate_before:.3g} → "
    load = ""
    if judged.load is not None and abs(judged.load - 1.0) >= 0.02:
        load = f" (a load {judged.load:.2f} times that of before)"
    lasted_s = max(series.until_s - series.begin_s, 0.0)
    return (
        f"{before}{judged.rate_after:.3g} prompt groups a second, where the split before would have made "
        f"{judged.after.would_rate:.3g}{load}: {change(judged.after.change, judged.after.error)}; {took}. From the "
        f"decision on, {clock(lasted_s)} long, {_groups(judged.whole.gain)} in all"
    )


def _obstacle(judged: Judged, explanation: Explanation) -> str:
    number, least = judged.series.num_steps_after, explanation.judgement.min_steps
    if number < least + 1:
        what = "before the next move" if judged.series.until_s < explanation.end_s else "afterwards"
        return f"only {_count(number, 'training step')} followed {what}"
    return "too little was measured"


def _together(holds: Sequence[Hold]) -> Iterator[str]:
    """The longest reasons, in the order of time, each with its span."""
    begin_s, end_s = holds[0].begin_s, holds[-1].end_s
    yield _nothing(begin_s, end_s, holds[-1])
    by_grounds: dict[str, list[Hold]] = {}
    for hold in holds:
        by_grounds.setdefault(grounds(hold.reason), []).append(hold)
    total_s = {each: sum(hold.end_s - hold.begin_s for hold in own) for each, own in by_grounds.items()}
    longest = sorted(total_s, key=lambda each: -total_s[each])
    shown = [each for each in longest[:_MAX_REASONS] if total_s[each] >= _SHORT * (end_s - begin_s)] or longest[:1]
    for each in sorted(shown, key=list(by_grounds).index):
        own = by_grounds[each]
        yield from _paragraph("", (_span(own) if len(shown) > 1 else "") + own[-1].reason)


def _span(holds: Sequence[Hold]) -> str:
    """From when to when, and how much of it."""
    whole_s = holds[-1].end_s - holds[0].begin_s
    total_s = sum(hold.end_s - hold.begin_s for hold in holds)
    part = f" ({total_s:.0f} s of it)" if total_s < 0.95 * whole_s else ""
    return f"{clock(holds[0].begin_s)} – {clock(holds[-1].end_s)}{part}: "


def _each(holds: Sequence[Hold]) -> Iterator[str]:
    for hold in holds:
        yield _nothing(hold.begin_s, hold.end_s, hold)
        yield from _paragraph("", hold.reason)
        if hold.rate_now is not None and hold.rate_after is not None:
            yield from _paragraph("best move left", _rates(hold.rate_now, hold.rate_after))


def _nothing(begin_s: float, end_s: float, last: Hold) -> str:
    split = f"{last.num_train} train, {last.num_rollout} roll out"
    return f"{clock(begin_s):>7} – {clock(end_s)} nothing moved: {split}"


def _paragraph(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        f"{label}: {text}" if label else text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT + "  "
    )


def _rates(before: float, after: float) -> str:
    relative = f" ({change(after / before - 1.0)})" if before > 0 else ""
    return f"{before:.3g} → {after:.3g} prompt groups a second{relative}"


def _groups(amount: float) -> str:
    text = f"{abs(amount):.1f}" if abs(amount) < 10 else f"{abs(amount):.0f}"
    return f"{text} prompt groups {'fewer' if amount < 0 else 'more'}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
