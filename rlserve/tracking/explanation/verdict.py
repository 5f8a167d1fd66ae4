"""What all moves of a run came to, in a few sentences: for ``rlserve explain`` and for the report."""

from __future__ import annotations

from collections.abc import Iterator

from rlserve.tracking.hindsight.comparison import CERTAIN, Comparison
from rlserve.tracking.hindsight.efficiency import Efficiency
from rlserve.tracking.hindsight.judgement import Judgement
from rlserve.tracking.hindsight.splits import Split


def verdict(judgement: Judgement) -> Iterator[str]:
    """Against the split of the start, and against what was possible."""
    if judgement.series:
        start, against = judgement.start, judgement.against_start
        if start is None or against is None:
            yield (
                "No verdict yet: whether the moves paid can be told after about "
                f"{1 + 3 * judgement.min_steps} training steps with all roles at work."
            )
        else:
            yield f"Verdict: {_against_start(start, against)}"
    if judgement.efficiency is not None:
        yield f"{_against_possible(judgement.efficiency)}."
    if judgement.shares_processors and (judgement.series or judgement.efficiency is not None):
        yield (
            "All of this is uncertain beyond its ±: the slots share processors and slow each other down, so what "
            "another split would have made follows only roughly from what this run measured. To know, run that split "
            "(manager=static pool.num_initial_rollout=…)."
        )


def change(relative: float, error: float | None = None) -> str:
    """``+3.1 %``, with its uncertainty ``+3.1 ± 2.0 %``; what may be chance is said to."""
    if error is None:
        return f"{100 * relative:+.1f} %"
    text = f"{100 * relative:+.1f} ± {100 * CERTAIN * error:.1f} %"
    return text if abs(relative) >= CERTAIN * error else f"{text}, which may be chance"


def split_words(split: Split) -> str:
    """``3 train, 9 roll out``."""
    return f"{split.num_train:g} train, {split.num_rollout:g} roll out"


def _against_start(start: Split, against: Comparison) -> str:
    relative = change(against.change, against.error)
    kept = f"against the split of the start ({split_words(start)}) kept all the time under the same load"
    if not against.is_certain:
        return f"whether the moves paid cannot be told: {relative}, {kept}."
    number = abs(against.gain)
    more = f"{number:.0f} prompt groups {'more' if against.gain > 0 else 'fewer'} of {against.num_groups}"
    return f"the moves {'paid' if against.gain > 0 else 'cost more than they brought'}: {relative} {kept}, {more}."


def _against_possible(found: Efficiency) -> str:
    against = change(found.realised / found.best_static - 1.0, found.static_error)
    return (
        f"{found.realised:.3g} prompt groups a second were trained; by the rates that this run measured, about "
        f"{found.best_static:.3g} with the best split that never moves ({found.best_static_num_rollout} roll out: this "
        f"run {against}), and {found.oracle:.3g} if the best split at every "
        f"moment cost nothing ({found.realised / found.oracle:.0%} of it)"
    )
