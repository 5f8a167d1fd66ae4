"""A server that speaks just enough of OpenAI's API, and answers by a script: with times, errors and broken streams."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class HandClock:
    """Stands still until somebody sets it."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass(frozen=True)
class Step:
    """Something that the server does: sets the clock, writes, and waits until the client has seen a token."""

    data: bytes = b""
    at_s: float | None = None
    waits_for_token: bool = False
    breaks: bool = False
    hangs: bool = False


@dataclass(frozen=True)
class Script:
    """An answer."""

    steps: Sequence[Step] = ()
    status: int = 200
    content_type: str = "text/event-stream"


def event(content: Any) -> bytes:
    """Of a stream."""
    text = content if isinstance(content, str) else json.dumps(content)
    return f"data: {text}\n\n".encode()


def text_chunk(text: str, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    """Of the completions endpoint."""
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish_reason, **more}]}


def chat_chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    """Of the chat endpoint."""
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def usage_chunk(num_input: int, num_output: int, num_cached: int = 0) -> dict[str, Any]:
    """The last before ``[DONE]``."""
    details = {"cached_tokens": num_cached}
    usage = {"prompt_tokens": num_input, "completion_tokens": num_output, "prompt_tokens_details": details}
    return {"choices": [], "usage": usage}


def streamed(texts: Sequence[str], *, num_input: int = 7) -> Script:
    """A well-behaved answer of one token a piece."""
    events = [event(text_chunk(text)) for text in texts]
    events += [event(text_chunk("", "length")), event(usage_chunk(num_input, len(texts))), event("[DONE]")]
    return Script([Step(each) for each in events])


def whole(content: Any, *, status: int = 200) -> Script:
    """An answer that is not streamed."""
    return Script([Step(json.dumps(content).encode())], status=status, content_type="application/json")


@dataclass
class ScriptedServer:
    """Answers what ``script`` says to a body; notes what it was asked."""

    script: Callable[[dict[str, Any]], Script]
    models: Sequence[str] = ("m",)
    tokens_of: Callable[[str], list[int]] | None = None
    """The tokenizer, if there is a ``/tokenize``."""
    clock: HandClock = field(default_factory=HandClock)
    token_seen: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    def app(self) -> web.Application:
        """With its routes."""
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._answer)
        app.router.add_post("/v1/chat/completions", self._answer)
        if self.tokens_of is not None:
            app.router.add_post("/tokenize", self._tokenize)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name} for name in self.models]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        assert self.tokens_of is not None
        tokens = self.tokens_of((await request.json())["prompt"])
        return web.json_response({"count": len(tokens), "tokens": tokens})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        self.paths.append(request.path)
        self.keys.append(request.headers.get("Authorization"))
        return await self._play(request, self.script(body))

    async def _play(self, request: web.Request, script: Script) -> web.StreamResponse:
        response = web.StreamResponse(status=script.status, headers={"Content-Type": script.content_type})
        await response.prepare(request)
        for step in script.steps:
            if step.at_s is not None:
                self.clock.now_s = step.at_s
            self.token_seen.clear()
            await response.write(step.data)
            if step.waits_for_token:
                await self.token_seen.wait()
            if step.hangs:
                await asyncio.Event().wait()
            if step.breaks:
                assert request.transport is not None
                request.transport.abort()
                return response
        await response.write_eof()
        return response


@asynccontextmanager
async def serving(server: ScriptedServer) -> AsyncIterator[str]:
    """In this event loop, on a free port of the loopback interface; the URL."""
    runner = web.AppRunner(server.app(), handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextmanager
def serving_in_thread(server: ScriptedServer) -> Iterator[str]:
    """In an event loop of a thread of its own."""
    urls, loop, ended = list[str](), asyncio.new_event_loop(), asyncio.Event()
    is_up = threading.Event()

    async def serve() -> None:
        async with serving(server) as url:
            urls.append(url)
            is_up.set()
            await ended.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert is_up.wait(30)
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()
