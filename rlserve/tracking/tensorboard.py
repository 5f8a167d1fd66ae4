"""TensorBoard: event files written by the ``tensorboard`` package, without TensorFlow or torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from rlserve.tracking.base import Sink

FLUSH_INTERVAL_S = 10


class TensorBoardSink(Sink):
    """Scalars in an event file under ``folder``.

    ``resumed_step`` is the first step that a resumed run does again: TensorBoard forgets the points from there on.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path, resumed_step: int | None = None) -> None:
        self._writer = EventFileWriter(str(folder), flush_secs=FLUSH_INTERVAL_S)
        if resumed_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=resumed_step, session_log=start))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def close(self, exit_code: int) -> None:
        self._writer.close()
