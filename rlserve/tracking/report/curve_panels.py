"""The panels that are nothing but curves: what stands in them, for whoever draws them. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from rlserve.tracking import colours, names
from rlserve.tracking.report.report_data import ReportData
from rlserve.tracking.report.series import Series, broken_at
from rlserve.tracking.timeline.usage import usages

NUM_WINDOWS = 60
"""Of the time axis, where a share is over some time."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line."""

    points: Series
    colour: str
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class CurvePanel:
    """Some lines over the same axis."""

    title: str
    curves: tuple[Curve, ...]
    from_zero: bool = False
    is_share: bool = False
    """Always drawn from 0 to 1."""
    is_whole: bool = False
    """Whole numbers only."""


def step_panels(data: ReportData) -> tuple[CurvePanel, ...]:
    """What the policy did, over training steps: six panels; none of a run that generates nothing."""
    if not data.generates:
        return ()
    return (
        _kl_panel(data),
        CurvePanel(
            title="entropy, nats/token",
            curves=(Curve(points=data.by_step(names.ENTROPY), colour=colours.ENTROPY),),
            from_zero=True,
        ),
        CurvePanel(
            title="answer length, tokens",
            curves=(Curve(points=data.by_step(names.RESPONSE_LENGTH), colour=colours.LENGTH),),
            from_zero=True,
        ),
        CurvePanel(
            title="share",
            curves=(
                # The load of a paced run says how long its answers are, so all of them are cut.
                *(
                    ()
                    if data.is_paced
                    else (Curve(points=data.by_step(names.CLIP_RATIO), colour=colours.CUT, label="answers cut"),)
                ),
                Curve(
                    points=data.by_step(names.FRAC_REWARD_ZERO_STD),
                    colour=colours.EQUAL_REWARDS,
                    label="equal rewards",
                ),
            ),
            is_share=True,
        ),
        CurvePanel(
            title="|Δ log-prob.|, engine–trainer",
            curves=(Curve(points=data.by_step(names.LOG_PROB_DIFFERENCE), colour=colours.LOG_PROB_DIFFERENCE),),
        ),
        CurvePanel(
            title="staleness, steps",
            curves=(Curve(points=data.by_step(names.STALENESS_MAX), colour=colours.STALENESS),),
            from_zero=True,
            is_whole=True,
        ),
    )


def _kl_panel(data: ReportData) -> CurvePanel:
    """KL to the frozen reference; where none is kept, that of what was sampled from to what is trained."""
    kl, k3 = data.by_step(names.KL), data.by_step(names.KL_K3)
    if not kl.x:
        behaviour = Curve(points=data.by_step(names.BEHAVIOUR_KL), colour=colours.KL)
        return CurvePanel(title="KL, rollout to trainer, nats/token", curves=(behaviour,))
    return CurvePanel(
        title="KL to the reference, nats/token",
        curves=(
            Curve(points=kl, colour=colours.MUTED, label="one sample"),
            Curve(points=k3, colour=colours.KL, label="k3"),
        ),
    )


def throughput_panel(data: ReportData) -> CurvePanel:
    """Tokens per second of both sides, of those that there are, over time."""
    colour = colours.OWNER_COLOURS
    generated = Curve(points=data.by_time(names.ROLLOUT_TOKENS_PER_S), colour=colour["rollout"], label="generated")
    trained = Curve(points=data.by_time(names.TRAINED_TOKENS_PER_S), colour=colour["train"], label="trained")
    return CurvePanel(
        title="throughput, tokens/s" + (" of the small model" if data.is_paced else ""),
        curves=(generated, trained) if data.generates else (trained,),
        from_zero=True,
    )


def utilisation_panel(data: ReportData) -> CurvePanel:
    """Which share of its slots' time each role computed, over time, by the slots that it had at each moment; and of all
    slots' time: what that lacks to 1 is the bubble."""
    length_s = (data.end_s - data.start_s) / NUM_WINDOWS
    edges_s = [data.start_s + index * length_s for index in range(NUM_WINDOWS + 1)]
    windows = usages(data.slices, edges_s) if length_s > 0 else ()
    middles_s = tuple(edge_s + length_s / 2 for edge_s in edges_s[: len(windows)])

    def curve(shares: Iterable[float | None], colour: str, label: str) -> Curve:
        known = tuple(math.nan if share is None else share for share in shares)
        return Curve(points=broken_at(Series(middles_s, known), data.resumes_s), colour=colour, label=label)

    replicas = curve((each.of_role("rollout") for each in windows), colours.OWNER_COLOURS["rollout"], "replicas")
    trainers = curve((each.of_role("train") for each in windows), colours.OWNER_COLOURS["train"], "trainers")
    all_slots = (None if each.bubble is None else 1 - each.bubble for each in windows)
    return CurvePanel(
        title="utilisation: share of each role's slots' time computing",
        curves=(
            *((replicas,) if data.generates else ()),
            trainers,
            curve(all_slots, colours.MUTED, "all slots"),
        ),
        is_share=True,
    )


def time_label(data: ReportData) -> str:
    """What stands under the time axis; the start of the run is folded into it."""
    label = f"{'modelled ' if data.is_paced else ''}seconds since the start of the run"
    if data.start_s >= 1:
        label += f"; the first {data.start_s:.0f} s, preparation and start of the workers, are not drawn"
    return label
