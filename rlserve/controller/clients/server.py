"""The front of a run: a server in a thread of the controller's process, with an event loop of its own.

::

    controller: run() ─► listen ─► thread: front … stop() ─► nothing new ─► answers end ─► the thread ends
                                     │                                            ▲
                                     └── a failure of it ends the run             └── drain_timeout_s at most

What the front does for clients (JSON, chat templates, tokens to text) takes turns with the controller's loop at the
interpreter's lock, a few milliseconds at a time, and holds none of its tasks up.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import uvloop

from rlserve.config.tree import RunConfig
from rlserve.controller.clients.desk import ClientDesk
from rlserve.controller.clients.operations import RunOperations
from rlserve.controller.clients.run_replicas import RunReplicas
from rlserve.engine.models import read_model_spec
from rlserve.serving.config import DrainConfig, ServeConfig, ServedModelConfig
from rlserve.serving.front import gate
from rlserve.serving.listeners import address_of
from rlserve.serving.replicas.messages import Ready
from rlserve.serving.server import Entry, administering, create_context, drain, listening, open_entry
from rlserve.tracking.run_folder import RunFolder, write_atomically

logger = logging.getLogger(__name__)


class ClientServer:
    """
    Args:
        model_path: folder of the model that the run began with.
    """

    def __init__(self, config: RunConfig, folder: RunFolder, desk: ClientDesk, *, model_path: str) -> None:
        self._config = serve_config(config)
        self._folder = folder
        self._desk = desk
        self._model_path = Path(model_path)
        self._limits = _limits(self._model_path, self._config)
        self._num_places = config.rollout.server.num_places(config.rollout.engine.max_num_sequences)
        self._front: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None
        self._ended: Future[None] = Future()

    async def run(self) -> None:
        """Serve until :meth:`stop`.

        Raises:
            UserError: the keys or the address cannot be used.
        """
        with open_entry(self._config) as entry:
            controller = asyncio.get_running_loop()
            thread = threading.Thread(target=self._serve, args=(controller, entry), name="clients", daemon=True)
            address = {"address": address_of(self._config, entry.listener), "model": self._config.model_name}
            write_atomically(self._folder.server_file, json.dumps(address) + "\n")
            self._ended.set_running_or_notify_cancel()  # a run that is broken off does not cancel what a thread does
            thread.start()
            try:
                await asyncio.wrap_future(self._ended)
            finally:
                self._folder.server_file.unlink(missing_ok=True)
                self._desk.close()

    async def stop(self) -> None:
        """Take nothing new, let answers under way end, and end."""
        if self._front is not None and self._ending is not None:
            self._front.call_soon_threadsafe(self._ending.set)
            await asyncio.wait([asyncio.wrap_future(self._ended)])

    # -- the front's thread ----------------------------------------------------------------------------------

    def _serve(self, controller: asyncio.AbstractEventLoop, entry: Entry) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._answer(controller, entry))
        except BaseException as error:
            self._ended.set_exception(error)
        else:
            self._ended.set_result(None)

    async def _answer(self, controller: asyncio.AbstractEventLoop, entry: Entry) -> None:
        ending = asyncio.Event()
        self._ending, self._front = ending, asyncio.get_running_loop()
        replicas = RunReplicas(self._desk, controller, limits=self._limits, num_places=self._num_places)
        logging.getLogger(gate.__name__).setLevel(logging.WARNING)  # a line a request would hide the run's own
        context = create_context(self._config, self._model_path, replicas, entry)
        folder = None if entry.door is None else entry.door.profile_folder
        operations = RunOperations(self._folder, self._desk, controller, profile_folder=folder)
        async with listening(context, entry.listener), administering(context, entry.door, operations):
            await ending.wait()
            await drain(context)
            replicas.break_off("no replica is left: the run has ended")


def serve_config(config: RunConfig) -> ServeConfig:
    """The server of a run, as a server of its own would be configured. More answers to one prompt than clients have
    places on a replica can never be had."""
    server, engine = config.rollout.server, config.rollout.engine
    num_places = server.num_places(engine.max_num_sequences)
    return ServeConfig(
        model=ServedModelConfig(
            path=config.model.path,
            name=server.name,
            tokenizer_path=config.model.tokenizer_path,
            chat_template=server.chat_template,
        ),
        host=server.host,
        port=server.port,
        engine=engine,
        access=server.access,
        admin=server.admin,
        accounting=server.accounting,
        audit=server.audit,
        limits=replace(server.limits, max_n=min(server.limits.max_n, num_places)),
        drain=DrainConfig(timeout_s=server.drain_timeout_s),
        degradation=server.degradation,
        tracing=server.tracing,
        content=server.content,
        answers=server.answers,
    )


def _limits(model_path: Path, config: ServeConfig) -> Ready:
    spec, engine = read_model_spec(model_path), config.engine
    return Ready(
        vocab_size=spec.vocab_size,
        max_model_len=min(spec.max_position, engine.max_model_len or spec.max_position),
        eos_token_ids=spec.eos_token_ids,
        max_num_sequences=engine.max_num_sequences,
    )
