"""What an operator orders of a replica, carried out on its engine one after the other, in a thread of its own.

Weights are read and staged beside the running model while steps go on; only the swap, and a pause, take place between
two steps.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlserve.errors import ModelError, RlserveError, UserError, WeightsRefusedError
from rlserve.serving.replicas.messages import Done, Message, Order
from rlserve.serving.replicas.profiling import Profiling

if TYPE_CHECKING:
    import torch

    from rlserve.engine import Engine, EngineLoop
    from rlserve.engine.decoder.staging import StagedWeights
    from rlserve.engine.models.base import ModelSpec

logger = logging.getLogger(__name__)


class Orders:
    """
    Args:
        engine: of ``loop``.
        send: hears what became of each order.
    """

    def __init__(
        self, engine: Engine, loop: EngineLoop, send: Callable[[Message], None], *, is_paused: bool = False
    ) -> None:
        self.is_paused = is_paused
        self._engine = engine
        self._loop = loop
        self._send = send
        self._waiting: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._staged: StagedWeights | None = None
        self._profiling = Profiling(loop, send)

    def put(self, order: Order) -> None:
        """Have an order carried out after those before it. Does not wait."""
        self._waiting.put(order)

    def run(self) -> None:
        """Carry out what comes, for ever.

        Raises:
            OSError: nobody hears what became of it.
            WorkerFailedError: the engine has failed.
        """
        while True:
            self.carry_out(self._waiting.get())

    def carry_out(self, order: Order) -> None:
        """Carry an order out, and tell what became of it."""
        done = Done(number=order.number)
        try:
            match order.action:
                case "pause":
                    self.is_paused = True  # before the engine is: it must not look stuck
                    self._loop.run(lambda engine: engine.pause())
                case "resume":
                    self._loop.run(lambda engine: engine.resume())
                    self.is_paused = False
                case "stage":
                    tensors = read_weights(Path(order.model_path), self._engine.spec)
                    self._staged = self._engine.stage_weights(tensors)
                case "discard":
                    self._staged = None
                case "swap":
                    done = replace(done, pause_s=self._swap(order.weight_version))
                case "load_adapter":
                    self._loop.run(lambda engine: engine.load_adapter(order.adapter, order.model_path, in_place=True))
                case "unload_adapter":
                    self._loop.run(lambda engine: engine.unload_adapter(order.adapter))
                case "profile":
                    self._profiling.begin(order)
                    return  # it tells itself when it has ended
                case "end_profile":
                    self._profiling.end()
        except (UserError, WeightsRefusedError) as error:
            logger.warning("%s is refused: %s", order.action, error)
            done = replace(done, error=str(error))
        self._send(done)

    def _swap(self, version: int) -> float:
        staged, self._staged = self._staged, None
        if staged is None:
            raise WeightsRefusedError(f"version {version} was not staged")

        def swap(engine: Engine) -> float:
            start_s = time.perf_counter()
            engine.swap_weights(version, staged)
            return time.perf_counter() - start_s

        return self._loop.run(swap)


def read_weights(folder: Path, spec: ModelSpec) -> dict[str, torch.Tensor]:
    """The weights of a folder, for an engine with a model of ``spec``.

    Raises:
        ModelError: it has none that can be read, or they are of another model.
    """
    from rlserve.engine.models import read_model_spec
    from rlserve.engine.models.checkpoint import Checkpoint

    found = read_model_spec(folder)
    if replace(found, eos_token_ids=spec.eos_token_ids) != spec:
        raise ModelError(f"{folder} is another model than the one that is served: start a server for it")
    try:
        return dict(Checkpoint(folder).tensors())
    except RlserveError:
        raise
    except Exception as error:  # whatever the reader of a damaged file raises
        raise ModelError(f"the weights in {folder} cannot be read: {error}") from error
