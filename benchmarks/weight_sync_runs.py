"""What versions of the weights cost in whole runs: how much changes in a step, what travels, who stands still."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from checks import Check
from launches import launch, read_steps

RUN_FILE = "conf/rlhf.yaml"
RUNS: dict[str, tuple[str, ...]] = {
    "float32": (),
    "bfloat16": ("rollout.engine.dtype=bfloat16",),
    "bfloat16-slow": ("rollout.engine.dtype=bfloat16", "trainer.learning_rate=1e-6"),
}
"""By name, the settings: of the default run, with the engine in bfloat16, and at the learning rate of larger models."""
MAX_PAUSE_S, MAX_PAUSE_SHARE = 0.05, 0.01
"""That an engine stands still, and of a step."""


@dataclass(frozen=True, kw_only=True)
class StepSync:
    """The version that one training step made, as its metrics tell."""

    step: int
    changed_share: float | None
    """Of the elements; None where there was nothing to compare with."""
    num_bytes: float
    """That travelled."""
    num_whole_bytes: float
    snapshot_s: float
    """Training stood still."""
    publish_s: float
    """Until replicas could take it, beside the training."""
    pause_s: float
    """The longest that an engine stood still."""
    step_s: float


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """All of a run."""

    name: str
    settings: tuple[str, ...]
    steps: tuple[StepSync, ...]

    @property
    def pause_s(self) -> float:
        """Median over the steps, as all of these."""
        return median(step.pause_s for step in self.steps)

    @property
    def pause_share(self) -> float:
        """Of a step, what an engine stands still."""
        return median(step.pause_s / step.step_s for step in self.steps)

    @property
    def snapshot_share(self) -> float:
        """Of a step, what training stands still."""
        return median(step.snapshot_s / step.step_s for step in self.steps)


def measure_run(name: str, folder: Path, *, num_steps: int) -> RunResult:
    """Do a run of :data:`RUNS` in ``folder``, unless it lies there, and read its metrics."""
    launch(RUN_FILE, f"num_steps={num_steps}", *RUNS[name], name=name, folder=folder)
    rows = [row for row in read_steps(folder / name) if "weights/sent_bytes" in row]
    steps = tuple(
        StepSync(
            step=int(row["step"]),
            changed_share=row.get("weights/changed_share"),
            num_bytes=row["weights/sent_bytes"],
            num_whole_bytes=row["weights/whole_bytes"],
            snapshot_s=row["weights/snapshot_s"],
            publish_s=row["weights/publish_s"],
            pause_s=row["weights/load_s"],
            step_s=row["timing_s/step"],
        )
        for row in rows
    )
    return RunResult(name=name, settings=RUNS[name], steps=steps)


def report_run(run: RunResult) -> None:
    """Print its table."""
    print(f"{run.name}: {RUN_FILE} {' '.join(run.settings)}")
    print("  step  changed    MB sent  factor  snapshot  publish  pause, ms  step, s  pause of a step")
    for step in run.steps:
        share = "–" if step.changed_share is None else f"{100 * step.changed_share:.2f} %"
        print(
            f"  {step.step:4}  {share:>7}  {step.num_bytes / 1e6:9.4f}  {step.num_whole_bytes / step.num_bytes:6.1f}"
            f"  {1e3 * step.snapshot_s:8.1f}  {1e3 * step.publish_s:7.1f}  {1e3 * step.pause_s:9.2f}"
            f"  {step.step_s:7.2f}  {100 * step.pause_s / step.step_s:13.3f} %"
        )


def run_checks(runs: Sequence[RunResult]) -> list[Check]:
    """What is to be reached, with what was found."""
    found = []
    for run in runs:
        figures = (
            ("pause of an engine, s", run.pause_s, MAX_PAUSE_S),
            ("pause of an engine, share of a step", run.pause_share, MAX_PAUSE_SHARE),
            ("pause of training, share of a step", run.snapshot_share, MAX_PAUSE_SHARE),
        )
        found += [
            Check(name=f"{run.name}: {name}", value=value, bar=bar, at_least=False) for name, value, bar in figures
        ]
    return found
