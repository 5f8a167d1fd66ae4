"""A server from its beginning to its end.

::

    checks ──► replicas start ──► one is ready ──► listen … SIGTERM ──► not ready ──► nothing new ──► streams end ──► 0
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from starlette.types import ASGIApp

from rlserve.engine.models import read_model_spec
from rlserve.errors import UserError
from rlserve.rollout.config import DataConfig
from rlserve.rollout.end_tokens import find_end_tokens
from rlserve.rollout.tokenizer_loading import load_tokenizer
from rlserve.serving.admin.base import Operations
from rlserve.serving.admin.door import AdminDoor
from rlserve.serving.admin.key_files import KeyFiles
from rlserve.serving.admin.pool_operations import PoolOperations
from rlserve.serving.admin.profiles import open_profile_folder
from rlserve.serving.config import AccessConfig, ServeConfig
from rlserve.serving.content.factory import create_filtering, create_masking
from rlserve.serving.front.app import create_admin_app, create_app
from rlserve.serving.front.context import ServerContext, current_level
from rlserve.serving.front.gate import Gate
from rlserve.serving.front.http_protocol import bounded_protocol
from rlserve.serving.front.root_path import RootPath
from rlserve.serving.keys import Role
from rlserve.serving.listeners import address_of, listen, listening_on
from rlserve.serving.metrics import LiveNumbers, ServerMetrics
from rlserve.serving.observing.tracing import create_tracing
from rlserve.serving.records import Records, open_records
from rlserve.serving.replicas.base import Replicas
from rlserve.serving.replicas.places import adapter_folders, replica_places
from rlserve.serving.replicas.pool import ReplicaPool
from rlserve.serving.routing.factory import create_policy
from rlserve.serving.scaling.config import ScalingConfig
from rlserve.serving.scaling.scaler import Scaler
from rlserve.serving.scaling.targets import TargetTracking
from rlserve.serving.text.conversation import ConversationRenderer
from rlserve.serving.text.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_BUILTIN_TEMPLATE = "{{ messages[-1]['content'] }}"
"""Of built-in models, which know no conversations: what was said last is the problem that they solve."""
_POLL_S = 0.05
_KEEP_ALIVE_S = 5
_CLOSE_S = 5
"""For the last bytes of answers that have ended."""


class _Server(uvicorn.Server):
    """Leaves signals alone: :func:`drain` lets answers end first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(config: ServeConfig, model_path: Path) -> int:
    """Serve until a signal ends it; returns the exit code.

    Args:
        model_path: folder of the model that ``config.model.path`` names.

    Raises:
        UserError: the configuration, the model or the address cannot be used.
        WorkerFailedError: all replicas were given up.
    """
    with open_entry(config) as entry, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(config, model_path, entry))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where clients and operators come in, and what is written down of them."""

    key_files: KeyFiles
    """Who is let in."""
    listener: socket.socket
    """Listens already: whoever connects while the model is loaded waits."""
    door: AdminDoor | None
    """Of operators."""
    records: Records


@contextlib.contextmanager
def open_entry(config: ServeConfig) -> Iterator[Entry]:
    """All of it while the context is open.

    Raises:
        UserError: keys, a certificate, an address or a file cannot be used.
    """
    key_files = KeyFiles(config)
    check_tls(config.access)
    with contextlib.ExitStack() as open_things:
        yield Entry(
            key_files=key_files,
            listener=open_things.enter_context(listening_on(config)),
            door=_open_admin(config, key_files, open_things),
            records=open_records(config, open_things),
        )


def check_tls(config: AccessConfig) -> None:
    """Raise ``UserError`` for a certificate that cannot be used."""
    if config.tls_certificate is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(config.tls_certificate, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            f"access.tls_certificate={config.tls_certificate} with access.tls_key={config.tls_key} cannot be used: "
            f"{error}"
        ) from error


def _open_admin(config: ServeConfig, key_files: KeyFiles, open_things: contextlib.ExitStack) -> AdminDoor | None:
    """The admin listener; None where none is asked for."""
    if config.admin.port is None:
        return None
    listener = open_things.enter_context(contextlib.closing(listen(config.admin.host, config.admin.port)))
    return AdminDoor(
        listener=listener, key_files=key_files, profile_folder=open_profile_folder(config.admin.profile_folder)
    )


async def _serve(config: ServeConfig, model_path: Path, entry: Entry) -> int:
    pool = ReplicaPool(
        replica_places(config, str(model_path)),
        create_policy(config.routing),
        config.health,
        num_wanted=config.num_replicas,
        drain_timeout_s=config.scaling.drain_timeout_s,
    )
    context = create_context(config, model_path, pool, entry)
    operations = PoolOperations(
        pool,
        timeout_s=config.health.start_timeout_s,
        profile_folder=None if entry.door is None else entry.door.profile_folder,
    )
    async with pool.running():
        logger.info("%s is loaded by %d replicas", config.model.path, config.num_replicas)
        ending = asyncio.Event()
        with _signals(ending.set, partial(_read_keys_anew, entry.key_files)):
            if not await _first_of(pool.wait_ready(), ending.wait()):
                return 0
            async with (
                scaling(config.scaling, pool, context.metrics),
                listening(context, entry.listener),
                administering(context, entry.door, operations),
            ):
                await _first_of(pool.wait_failed(), ending.wait())
                await drain(context)
    return 0


@contextlib.asynccontextmanager
async def scaling(config: ScalingConfig, pool: ReplicaPool, metrics: ServerMetrics) -> AsyncIterator[None]:
    """Replicas come and go by load while the context is open, if the configuration says so."""
    if not config.enabled:
        yield
        return
    scaler = Scaler(TargetTracking(config), pool, interval_s=config.interval_s)
    metrics.register(scaler)
    async with scaler.running():
        yield


def create_context(config: ServeConfig, model_path: Path, pool: Replicas, entry: Entry) -> ServerContext:
    """What all routes share; ``pool`` answers."""
    spec = read_model_spec(model_path)
    tokenizer = load_tokenizer(config.model.tokenizer_path or str(model_path))
    template = _read_template(config.model.chat_template)
    if template is None and config.model.path.startswith("builtin:"):
        template = _BUILTIN_TEMPLATE
    if template is not None:
        tokenizer.chat_template = template
    renderer = ConversationRenderer(tokenizer, None, config.limits.template_timeout_s)
    ends = find_end_tokens(
        tokenizer,
        DataConfig(path="", apply_chat_template=renderer.has_template),
        of_model=spec.eos_token_ids,
        vocab_size=spec.vocab_size,
    )

    def live_numbers() -> LiveNumbers:
        return LiveNumbers(
            engines=pool.engine_metrics,
            level=current_level(config, pool),
            num_live_samples=pool.num_live_samples,
            num_ready_replicas=pool.num_ready,
            num_failovers=pool.counts.num_failovers,
            num_lost_replicas=pool.counts.num_lost,
        )

    metrics = ServerMetrics(config.model_name, live_numbers)
    metrics.register(entry.records.accounts)
    metrics.register(entry.records.failures)
    masking, filtering = create_masking(config.content), create_filtering(config.content)
    for collector in (masking, filtering):
        if collector is not None:
            metrics.register(collector)
    return ServerContext(
        masking=masking,
        filtering=filtering,
        config=config,
        keys=entry.key_files.clients,
        pool=pool,
        vocabulary=Vocabulary(tokenizer),
        renderer=renderer,
        end_token_ids=ends.added,
        metrics=metrics,
        records=entry.records,
        started_s=int(time.time()),
        adapters=adapter_folders(config),
        tracing=create_tracing(config.tracing, config.model_name),
    )


def _read_template(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"model.chat_template={path} cannot be read: {error}") from error


@contextlib.asynccontextmanager
async def listening(context: ServerContext, listener: socket.socket) -> AsyncIterator[None]:
    """Answer HTTP while the context is open."""
    config = context.config
    checks_host = len(context.keys) == 0 and not config.access.insecure and config.unix_socket is None
    app, tracing = create_app(context), context.tracing
    gate = Gate(
        app,
        context.keys,
        context.metrics,
        checks_host=checks_host,
        tracing=tracing,
        records=context.records,
    )
    logger.info("serving %s on %s", config.model_name, address_of(config, listener))
    try:
        async with context.records.kept(), _answering(RootPath(gate, config.root_path), config, listener):
            yield
    finally:
        if tracing is not None:
            await asyncio.to_thread(tracing.close)


@contextlib.asynccontextmanager
async def administering(context: ServerContext, door: AdminDoor | None, operations: Operations) -> AsyncIterator[None]:
    """Let operators in while the context is open, if there is a door for them."""
    if door is None:
        yield
        return
    app = create_admin_app(context, operations, door.key_files)
    gate = Gate(
        app,
        door.key_files.operators,
        context.metrics,
        checks_host=False,
        open_paths=frozenset(),
        role=Role.ADMIN,
        records=context.records,
    )
    logger.info("administered on %s", address_of(context.config, door.listener).removesuffix("/v1"))
    async with _answering(gate, context.config, door.listener):
        yield


@contextlib.asynccontextmanager
async def _answering(gate: ASGIApp, config: ServeConfig, listener: socket.socket) -> AsyncIterator[None]:
    server = _Server(
        uvicorn.Config(
            gate,
            http=bounded_protocol(config.limits.max_header_bytes, config.limits.header_timeout_s),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_CLOSE_S,
            ssl_certfile=config.access.tls_certificate,
            ssl_keyfile=config.access.tls_key,
        )
    )
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


async def drain(context: ServerContext) -> None:
    """Let what is under way end: not ready at once, nothing new after the notice."""
    config, draining = context.config.drain, context.draining
    draining.is_ready, draining.is_ending = False, True
    logger.info("ending: %d answers are under way", context.pool.num_live_samples)
    await asyncio.sleep(config.notice_s)
    draining.takes_requests = False
    deadline = time.monotonic() + config.timeout_s
    while context.pool.num_live_samples and time.monotonic() < deadline:
        await asyncio.sleep(_POLL_S)
    if left := context.pool.num_live_samples:
        logger.warning("%d answers are broken off after drain.timeout_s=%g", left, config.timeout_s)


@contextlib.contextmanager
def _signals(end: Callable[[], None], reload: Callable[[], None]) -> Iterator[None]:
    """``end`` is called on the first SIGTERM or SIGINT; after that they have their usual effect. ``reload`` is called
    on each SIGHUP."""
    loop = asyncio.get_running_loop()

    def first() -> None:
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(name)
            signal.signal(name, signal.SIG_DFL)
        end()

    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, first)
    loop.add_signal_handler(signal.SIGHUP, reload)
    yield


def _read_keys_anew(key_files: KeyFiles) -> None:
    try:
        key_files.reload()
    except UserError as error:
        logger.error("the keys stay as they are: %s", error)


async def _first_of(work: Coroutine[Any, Any, None], ending: Coroutine[Any, Any, Any]) -> bool:
    """Wait for one of two; whether it was ``work``, whose error is raised."""
    tasks = [asyncio.create_task(work), asyncio.create_task(ending)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
            return True
        return False
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
