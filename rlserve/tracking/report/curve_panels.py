"""The panels that are nothing but curves: what stands in them, for whoever draws them. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

from rlserve.tracking import colours, names
from rlserve.tracking.report.report_data import ReportData
from rlserve.tracking.report.series import Series


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
    """What the policy did, over training steps: six panels."""
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
                Curve(points=data.by_step(names.CLIP_RATIO), colour=colours.CUT, label="answers cut"),
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
    """Tokens per second of both sides, over time."""
    return CurvePanel(
        title="throughput, tokens/s",
        curves=(
            Curve(
                points=data.by_time(names.ROLLOUT_TOKENS_PER_S),
                colour=colours.OWNER_COLOURS["rollout"],
                label="generated",
            ),
            Curve(
                points=data.by_time(names.TRAINED_TOKENS_PER_S), colour=colours.OWNER_COLOURS["train"], label="trained"
            ),
        ),
        from_zero=True,
    )


def computing_panel(data: ReportData) -> CurvePanel:
    """Which share of its time each side computed, over time."""
    step, wait = data.by_time(names.STEP_S), data.by_time(names.WAIT_S)
    training = Series(step.x, tuple(1 - waited / took for waited, took in zip(wait.y, step.y, strict=True)))
    return CurvePanel(
        title="share of time computing; the rest is waiting",
        curves=(
            Curve(points=data.by_time(names.ROLLOUT_BUSY), colour=colours.OWNER_COLOURS["rollout"], label="replicas"),
            Curve(points=training, colour=colours.OWNER_COLOURS["train"], label="trainer"),
        ),
        is_share=True,
    )


def time_label(data: ReportData) -> str:
    """What stands under the time axis; the start of the run is folded into it."""
    label = "seconds since the start of the run"
    if data.start_s >= 1:
        label += f"; the first {data.start_s:.0f} s, preparation and start of the workers, are not drawn"
    return label
