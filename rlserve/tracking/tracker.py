"""The run's one way to write things down. Nothing that fails here can stop a run.

::

    controller ──▶ Tracker ──▶ metrics.jsonl                         at once
                          ├──▶ AdviceSink: warnings in the log       at once
                          ├──▶ decisions.jsonl, events.jsonl, …      at once
                          ├──▶ live.json                             at once, replaced every second
                          ├──▶ BackgroundSink ──▶ answers.jsonl      in its own thread
                          ├──▶ BackgroundSink ──▶ wandb              in its own thread
                          ├──▶ BackgroundSink ──▶ TensorBoard        in its own thread
                          └──▶ PrometheusEndpoint                    at once; fetched from its own thread
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence

from rlserve.tracking.advice import AdviceSink, read_context
from rlserve.tracking.answers import AnswersFile, Kind, MakeAnswers
from rlserve.tracking.background import BackgroundSink
from rlserve.tracking.base import EngineMetrics, LiveSink, Sink
from rlserve.tracking.config import TrackingConfig
from rlserve.tracking.events import BudgetEvent, EventLog, Record
from rlserve.tracking.jsonl import JsonlSink
from rlserve.tracking.live import LiveFile, LiveState
from rlserve.tracking.run_folder import RunFolder

logger = logging.getLogger(__name__)

SIGNALLED_EXIT = 128
"""Exit codes from here on are of runs that a signal has ended."""


class Tracker:
    """Fans metrics out to the sinks, and decisions, events and how the run stands to their files.

    Whatever raises is reported with one warning and left out for the rest of the run.
    """

    def __init__(self, sinks: Sequence[Sink], events: EventLog, live: LiveFile) -> None:
        self._sinks = tuple(sinks)
        self._events = events
        self._live = live
        self._disabled: set[str] = set()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a training step; 0 is before the first. A step may come in several calls."""
        plain = {name: float(value) for name, value in metrics.items()}
        for sink in self._sinks:
            self._attempt(sink.name, lambda sink=sink: sink.log(step, plain))  # type: ignore[misc]

    def log_answers(self, step: int, kind: Kind, make: MakeAnswers) -> None:
        """Some answers of a step in full; ``make`` is called in the thread of each sink that keeps them."""
        for sink in self._sinks:
            self._attempt(sink.name, lambda sink=sink: sink.log_answers(step, kind, make))  # type: ignore[misc]

    def record(self, record: Record) -> None:
        """A decision of the manager, something that happened, or what a step was done on."""
        self._attempt("the event log", lambda: self._events.write(record))
        if isinstance(record, BudgetEvent):
            ends = "; the run saves and ends" if record.stops else ""
            self._alert(
                "budget passed", f"{record.spent:.6g} is spent of cost.budget.{record.unit}={record.budget:g}{ends}"
            )

    def show(self, state: LiveState) -> None:
        """How the run stands right now."""
        self._attempt("live.json", lambda: self._live.write(state))

    def watch_engines(self, read: Callable[[], Mapping[str, EngineMetrics]]) -> None:
        """Let whoever serves live numbers read those of each slot's engine, by vLLM's names, in another thread."""
        for sink in self._sinks:
            if isinstance(sink, LiveSink):
                sink.watch_engines(read)

    def close(self, exit_code: int, error: str | None = None) -> None:
        """Write everything out; ``exit_code`` is the run's, ``error`` what it failed with."""
        if 0 < exit_code < SIGNALLED_EXIT:
            self._alert("run failed", error or "its log says why")
        for sink in self._sinks:
            self._attempt(sink.name, lambda sink=sink: sink.close(exit_code))  # type: ignore[misc]
        self._attempt("live.json", self._live.remove)
        self._attempt("the event log", lambda: self._events.close(exit_code, error))

    def _alert(self, title: str, text: str) -> None:
        for sink in self._sinks:
            self._attempt(sink.name, lambda sink=sink: sink.alert(title, text))  # type: ignore[misc]

    def _attempt(self, name: str, action: Callable[[], None]) -> None:
        if name in self._disabled:
            return
        try:
            action()
        except Exception as error:  # tracking must never stop a run
            self._disabled.add(name)
            logger.warning("%s failed and is left out from here on: %s: %s", name, type(error).__name__, error)
            logger.debug("how %s failed", name, exc_info=error)


def create_tracker(
    config: TrackingConfig,
    folder: RunFolder,
    run_config: Mapping[str, object],
    resumed_step: int | None = None,
    model_name: str = "",
) -> Tracker:
    """The tracker of a run.

    Args:
        config: which sinks there are.
        folder: of the run; everything is written below it.
        run_config: the resolved configuration as plain data.
        resumed_step: first step that a resumed run does again; None for a new run.
        model_name: as Prometheus calls the model.

    Raises:
        UserError: wandb was asked to be online and there is no key, or Prometheus' port is taken.
    """
    sinks: list[Sink] = [
        JsonlSink(folder.metrics_file, resumed_step),
        AdviceSink(read_context(folder.name, run_config)),
    ]
    if config.samples:
        sinks.append(BackgroundSink("answers.jsonl", lambda: AnswersFile(folder.answers_file, resumed_step)))
    if config.wandb.enabled:
        # Imported where used: the library takes half a second, and who turns it off need not have it work.
        from rlserve.tracking.wandb import open_wandb
        from rlserve.tracking.wandb_settings import Surroundings, choose_mode

        mode = choose_mode(config.wandb, Surroundings.read(os.environ))
        sinks.append(BackgroundSink("wandb", lambda: open_wandb(config.wandb, mode, folder, run_config)))
    if config.tensorboard:
        from rlserve.tracking.tensorboard import TensorBoardSink

        sinks.append(BackgroundSink("TensorBoard", lambda: TensorBoardSink(folder.tensorboard, resumed_step)))
    if config.prometheus_port is not None:
        from rlserve.tracking.prometheus import PrometheusEndpoint

        sinks.append(PrometheusEndpoint(config.prometheus_host, config.prometheus_port, model_name))
    return Tracker(sinks, EventLog(folder, resumed_step), LiveFile(folder.live_file))
