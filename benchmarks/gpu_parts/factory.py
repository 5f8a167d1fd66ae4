"""The parts, most important first: the last ones are left out when time runs short."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from gpu_parts.base import Part, Place, Report

ENGINE_CASES = (
    "triton",
    "triton-no-overlap",
    "triton-no-graphs",
    "triton-block-16",
    "triton-int8-cache",
    "flash",
    "torch",
)


def _late(module: str, function: str, *arguments: str) -> Callable[[Place, Report], None]:
    """A function of a module that is imported when it is called: the main process needs no torch."""

    def measure(place: Place, report: Report) -> None:
        getattr(import_module(f"gpu_parts.{module}"), function)(*arguments, place, report)

    return measure


_FIRST_ENGINE, *_LATER_ENGINES = (
    Part(name=f"engine-{case}", measure=_late("engine_speed", "measure_engine", case), least_s=30, most_s=90)
    for case in ENGINE_CASES
)
PARTS = {
    part.name: part
    for part in (
        Part(name="models", measure=_late("models", "make_models"), least_s=15, most_s=90),
        Part(name="sleep", measure=_late("memory", "measure_sleep"), least_s=15, most_s=60),
        Part(name="weights-ipc", measure=_late("weights_ipc", "measure_ipc"), least_s=20, most_s=90),
        Part(name="weights-broadcast", measure=_late("weights_broadcast", "measure_broadcast"), least_s=20, most_s=90),
        Part(name="determinism", measure=_late("determinism", "measure_determinism"), least_s=15, most_s=60),
        _FIRST_ENGINE,
        Part(name="trainer", measure=_late("trainer_step", "measure_trainer"), least_s=30, most_s=90),
        Part(name="tests", measure=_late("gpu_tests", "measure_tests"), least_s=20, most_s=150),
        *_LATER_ENGINES,
    )
}
