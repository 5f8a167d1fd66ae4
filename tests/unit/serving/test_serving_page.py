"""The page at ``/``, in a real browser where this machine has one, and the real front over an engine that is a fake."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest
import uvicorn
from browser import Tab, browsing, find_browser
from serving_fakes import KEY, TOKENIZER, FakePool, fake_context
from starlette.testclient import TestClient

from rlserve.engine.requests.request import Request
from rlserve.serving.config import ServeConfig, ServedModelConfig
from rlserve.serving.front.app import create_app
from rlserve.serving.front.context import ServerContext
from rlserve.serving.front.gate import Gate
from rlserve.serving.front.routes.page import PATHS
from rlserve.serving.keys import Keys
from rlserve.serving.metrics import LiveNumbers, ServerMetrics
from rlserve.serving.text.conversation import ConversationRenderer
from rlserve.tracking.vllm_names import VLLM_METRICS

BROWSER = find_browser()
NEEDS_BROWSER = pytest.mark.skipif(BROWSER is None, reason="needs Chromium, and this machine has none")
MARKUP = "<img src=x onerror=document.title='broken'>"

Visit: TypeAlias = Callable[[Tab], Awaitable[None]]


def make_gate(context: ServerContext) -> Gate:
    return Gate(create_app(context), context.keys, context.metrics, checks_host=False)


class TestFiles:
    """What needs no browser."""

    @pytest.fixture
    def client(self) -> TestClient:
        return TestClient(make_gate(fake_context()))

    @pytest.mark.parametrize("path", sorted(PATHS))
    def test_files_are_open_and_their_policy_lets_in_nothing_from_elsewhere(
        self, client: TestClient, path: str
    ) -> None:
        answer = client.get(path)
        assert answer.status_code == 200
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"

    def test_the_page_has_no_scripts_styles_or_handlers_of_its_own_and_no_address_of_elsewhere(
        self, client: TestClient
    ) -> None:
        page = client.get("/").text
        assert re.findall(r"<script[^>]*>([^<]*)</script>", page) == [""]
        assert not re.search(r"<style|\bstyle=|\bon\w+\s*=", page)
        for path in PATHS:
            assert "//" not in re.sub(r"^\s*//.*$", "", client.get(path).text, flags=re.MULTILINE)

    def test_text_becomes_no_markup(self, client: TestClient) -> None:
        script = client.get("/page.js").text
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|Function\(", script)


@NEEDS_BROWSER
class TestInABrowser:
    def test_a_conversation_is_streamed_and_the_model_is_told_all_of_it(self, tmp_path: Path) -> None:
        pool = FakePool("the sum is 7")

        async def visit(tab: Tab) -> None:
            await tab.wait_for("document.title.startsWith('fake')")
            await tab.type("#text", "3+4=")
            await tab.press_enter()
            await tab.wait_for("document.querySelectorAll('.about').length === 1")
            assert await texts(tab, ".assistant") == ["the sum is 7"]
            (about,) = await texts(tab, ".about")
            assert "12 tokens" in about
            assert "weights v3" in about
            await tab.evaluate("document.querySelector('#temperature').value = '0.5'")
            await tab.evaluate("document.querySelector('#max-tokens').value = '20'")
            await tab.type("#text", "and 1+1=")
            await tab.click("#send")
            await tab.wait_for("document.querySelectorAll('.about').length === 2")
            assert await texts(tab, ".user") == ["3+4=", "and 1+1="]

        browse(tmp_path, pool, visit)
        prompts = [text_of(request) for request in pool.requests]
        assert "user: 3+4= assistant: the sum is 7 user: and 1+1=" in prompts[1]
        assert (pool.requests[1].sampling.temperature, pool.requests[1].sampling.max_tokens) == (0.5, 20)

    def test_a_model_without_a_chat_template_continues_each_text_alone(self, tmp_path: Path) -> None:
        pool = FakePool("the sum is 7")

        async def visit(tab: Tab) -> None:
            await tab.wait_for("document.title.startsWith('fake')")
            assert "no chat template" in await tab.evaluate("document.querySelector('#text').placeholder")
            for number, text in enumerate(("3+4=", "1+1="), 1):
                await tab.type("#text", text)
                await tab.press_enter()
                await tab.wait_for(f"document.querySelectorAll('.about').length === {number}")
            assert await texts(tab, ".assistant") == ["the sum is 7"] * 2
            assert all("12 tokens" in about for about in await texts(tab, ".about"))

        browse(tmp_path, pool, visit, has_template=False)
        assert [text_of(request) for request in pool.requests] == ["3+4=", "1+1="]
        assert pool.requests[0].sampling.max_tokens == pool.limits.max_model_len // 2

    def test_stop_ends_the_answer_here_and_in_the_engine_and_what_came_stays(self, tmp_path: Path) -> None:
        pool = FakePool("hello")
        pool.hangs = True

        async def visit(tab: Tab) -> None:
            await tab.wait_for("document.title.startsWith('fake')")
            await tab.type("#text", "hi")
            await tab.press_enter()
            await tab.wait_for("document.querySelector('.assistant')?.textContent === 'h'")
            assert await tab.evaluate("document.querySelector('#send').disabled")
            await tab.click("#stop")
            await tab.wait_for("!document.querySelector('#send').disabled")
            assert await texts(tab, ".assistant") == ["h"]
            assert "stopped" in (await texts(tab, ".about"))[0]
            while not pool.aborted:
                await asyncio.sleep(0.01)
            await tab.click("#new")
            assert await texts(tab, ".said") == []

        browse(tmp_path, pool, visit)

    def test_numbers_are_those_of_the_metrics(self, tmp_path: Path) -> None:
        async def visit(tab: Tab) -> None:
            await tab.wait_for("document.querySelectorAll('#engines tbody tr').length === 2")
            rows = await tab.evaluate("[...document.querySelectorAll('#engines tbody tr')].map((row) => row.innerText)")
            assert [row.split()[:5] for row in rows] == [["cpu/0", "2", "1", "25", "%"], ["cpu/1", "2", "1", "25", "%"]]
            numbers = await tab.evaluate("document.querySelector('#numbers').innerText")
            assert re.search(r"replicas ready\s+2\b", numbers)
            assert re.search(r"waiting in queues\s+2\b", numbers)
            assert re.search(r"input found in the cache\s+50 %", numbers)
            assert re.search(r"degradation level\s+1\b", numbers)

        browse(tmp_path, FakePool(), visit)

    def test_a_key_is_asked_for_used_and_kept_nowhere(self, tmp_path: Path) -> None:
        async def visit(tab: Tab) -> None:
            await tab.wait_for("!document.querySelector('#key-form').hidden")
            await tab.type("#key", "wrong-key")
            await tab.press_enter()
            await tab.wait_for("document.querySelector('#error').textContent.includes('does not know this key')")
            await tab.wait_for("!document.querySelector('#key-form').hidden")
            await tab.type("#key", KEY)
            await tab.press_enter()
            await tab.wait_for("document.title.startsWith('fake')")
            assert await tab.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
            assert not await tab.evaluate("document.documentElement.outerHTML.includes('key-for-unit-tests')")
            tab.complaints = [text for text in tab.complaints if "401" not in text]

        browse(tmp_path, FakePool(), visit, has_keys=True)

    def test_what_is_said_is_text_whatever_it_looks_like(self, tmp_path: Path) -> None:
        async def visit(tab: Tab) -> None:
            await tab.wait_for("document.title.includes('img')")
            await tab.type("#text", MARKUP)
            await tab.press_enter()
            await tab.wait_for("document.querySelectorAll('.about').length === 1")
            assert await texts(tab, ".user") == [MARKUP]
            assert await tab.evaluate("document.querySelectorAll('img').length") == 0
            assert await tab.evaluate("document.title") != "broken"

        browse(tmp_path, FakePool(), visit, name=MARKUP)

    def test_reasoning_stands_before_the_answer_and_is_not_said_again(self, tmp_path: Path) -> None:
        chunks = [{"reasoning": "3 and "}, {"reasoning_content": "4"}, {"content": "is "}, {"content": "7"}]
        stream = ": keep-alive\r\n\r\n" + "".join(
            f"data: {json.dumps({'choices': [{'delta': chunk}]})}\r\n\r\n" for chunk in chunks
        )

        async def visit(tab: Tab) -> None:
            await tab.wait_for("document.title.startsWith('fake')")
            await answer_with(tab, stream + "data: [DONE]\r\n\r\n")
            assert await texts(tab, ".thought") == ["3 and 4"]
            assert await texts(tab, ".assistant") == ["is 7"]
            assert await tab.evaluate("page.messages.at(-1).content") == "is 7"

        browse(tmp_path, FakePool(), visit)

    def test_a_stream_that_breaks_off_or_tells_of_an_error_says_so(self, tmp_path: Path) -> None:
        begun = f"data: {json.dumps({'choices': [{'delta': {'content': 'he'}}]})}\n\n"

        async def visit(tab: Tab) -> None:
            await tab.wait_for("document.title.startsWith('fake')")
            await answer_with(tab, begun)
            assert await texts(tab, "#error") == ["The stream broke off."]
            await answer_with(tab, begun + f"data: {json.dumps({'error': {'message': 'engine died'}})}\n\n")
            assert await texts(tab, "#error") == ["engine died"]
            assert await texts(tab, ".assistant") == ["he", "he"]

        browse(tmp_path, FakePool(), visit)

    def test_a_server_that_is_gone_is_found_again(self, tmp_path: Path) -> None:
        async def visit(tab: Tab) -> None:
            await tab.wait_for("document.title.startsWith('fake')")
            await tab.evaluate("window.real = fetch; window.fetch = () => Promise.reject(new TypeError('gone')); 0")
            await tab.wait_for("document.querySelector('#state').textContent === 'the server does not answer'")
            await tab.evaluate("window.fetch = real; 0")
            await tab.wait_for("document.querySelector('#state').textContent === ''")

        browse(tmp_path, FakePool(), visit)

    def test_an_error_of_the_server_is_shown_and_the_conversation_goes_on(self, tmp_path: Path) -> None:
        pool = FakePool("ok")

        async def visit(tab: Tab) -> None:
            await tab.wait_for("document.title.startsWith('fake')")
            await tab.evaluate("document.querySelector('#temperature').value = '-1'")
            await tab.type("#text", "a")
            await tab.evaluate("send()")
            await tab.wait_for("document.querySelector('#error').textContent.includes('temperature')")
            await tab.evaluate("document.querySelector('#temperature').value = '1'")
            await tab.type("#text", "b")
            await tab.press_enter()
            await tab.wait_for("document.querySelectorAll('.about').length === 2")
            assert (await texts(tab, ".assistant"))[1] == "ok"
            tab.complaints = [text for text in tab.complaints if "400" not in text]

        browse(tmp_path, pool, visit)
        (request,) = pool.requests
        assert text_of(request).count("user:") == 1


def text_of(request: Request) -> str:
    """Of a prompt."""
    return str(TOKENIZER.decode(request.prompt_token_ids))


async def texts(tab: Tab, selector: str) -> list[str]:
    """What elements say."""
    found: list[str] = await tab.evaluate(
        f"[...document.querySelectorAll('{selector}')].map((each) => each.textContent)"
    )
    return found


async def answer_with(tab: Tab, stream: str) -> None:
    """Ask something, and let the page have ``stream`` for an answer."""
    await tab.evaluate(f"window.real = fetch; window.fetch = async () => new Response({json.dumps(stream)}); 0")
    await tab.evaluate("byId('text').value = 'hi'; send()")
    await tab.evaluate("window.fetch = real; 0")


def browse(
    folder: Path,
    pool: FakePool,
    visit: Visit,
    *,
    has_keys: bool = False,
    name: str = "fake",
    has_template: bool = True,
) -> None:
    """Open the page, do what ``visit`` does, and see that the browser had nothing to complain about."""
    config = ServeConfig(model=ServedModelConfig(path="/models/fake", name=name))
    context = fake_context(pool=pool, keys=None if has_keys else Keys(()), config=config)
    context = replace(context, metrics=ServerMetrics("fake", lambda: NUMBERS))
    if not has_template:
        context = replace(context, renderer=ConversationRenderer(TOKENIZER, None, 5.0))

    async def main() -> None:
        assert BROWSER is not None
        async with listening(context) as url, browsing(BROWSER, folder) as tab:
            await tab.open(url)
            await visit(tab)
            assert tab.complaints == []
            assert all(address.startswith((url, "data:")) for address in tab.requested)

    asyncio.run(main())


@asynccontextmanager
async def listening(context: ServerContext) -> AsyncIterator[str]:
    """The front, over HTTP on a free port."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        server = uvicorn.Server(uvicorn.Config(make_gate(context), log_config=None))
        serving = asyncio.create_task(server.serve([listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = server.force_exit = True
            await serving


ENGINE = {
    "vllm:num_requests_running": 2.0,
    "vllm:num_requests_waiting": 1.0,
    "vllm:kv_cache_usage_perc": 0.25,
    "vllm:generation_tokens": 100.0,
    "vllm:prefix_cache_queries": 40.0,
    "vllm:prefix_cache_hits": 20.0,
}
assert set(ENGINE) <= set(VLLM_METRICS)
NUMBERS = LiveNumbers(
    engines={"cpu/0": ENGINE, "cpu/1": ENGINE},
    level=1,
    num_live_samples=6,
    num_ready_replicas=2,
    num_failovers=0,
    num_lost_replicas=0,
)
