"""Talk to a served model in a terminal: streamed, Ctrl-C stops an answer, and the server remembers what it has read.

python examples/chat/chat.py http://127.0.0.1:8000 [--system TEXT] [--temperature T] [--max-tokens N]

Lines are read from the terminal or a pipe. ``/new`` begins anew, ``/retry`` asks for another answer, ``/quit`` ends.
The key, if the server wants one, is read from ``OPENAI_API_KEY``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import uuid
from collections.abc import Iterable

import openai
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionMessageParam


class Chat:
    """A conversation, which grows by a question and its answer at a time.

    Args:
        client: of the server.
        model: name of one of its models.
        system: what the model is told first, or nothing.
    """

    def __init__(
        self, client: openai.OpenAI, model: str, system: str | None, temperature: float, max_tokens: int
    ) -> None:
        self._client = client
        self._model = model
        self._system = system
        self._temperature = temperature
        self._max_tokens = max_tokens
        self.begin()

    def begin(self) -> None:
        """Forget all that was said."""
        self._messages: list[ChatCompletionMessageParam] = []
        if self._system is not None:
            self._messages.append({"role": "system", "content": self._system})
        self._session = uuid.uuid4().hex

    def ask(self, text: str) -> None:
        """Print the answer as it comes. One that is stopped or fails half-way is kept as far as it was read."""
        self._messages.append({"role": "user", "content": text})
        self._answer()

    def retry(self) -> None:
        """Another answer to the last question."""
        if self._messages and self._messages[-1]["role"] == "assistant":
            self._messages.pop()
        if self._messages and self._messages[-1]["role"] == "user":
            self._answer()
        else:
            print("nothing was asked yet")

    def _answer(self) -> None:
        start, first_s, said, usage = time.monotonic(), None, "", None
        try:
            with self._client.chat.completions.create(
                model=self._model,
                messages=self._messages,
                temperature=self._temperature,
                max_completion_tokens=self._max_tokens,
                # A server of several replicas keeps a conversation where its tokens are cached.
                prompt_cache_key=self._session,
                stream=True,
                stream_options={"include_usage": True},
            ) as stream:
                for chunk in stream:
                    usage = chunk.usage or usage
                    piece = chunk.choices[0].delta.content if chunk.choices else None
                    if piece:
                        first_s = first_s or time.monotonic() - start
                        said += piece
                        print(piece, end="", flush=True)
        except KeyboardInterrupt:  # the stream is closed: the server frees what the answer held
            print(" (stopped)", end="")
        except openai.APIError as error:
            print(f"({error})", end="")
        print()
        if said:
            self._messages.append({"role": "assistant", "content": said})
        else:
            self._messages.pop()
        if usage is not None and first_s is not None:
            print(_figures(usage, first_s, time.monotonic() - start))


def _figures(usage: CompletionUsage, first_s: float, whole_s: float) -> str:
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    return (
        f"  [{usage.prompt_tokens} tokens read, {cached or 0} of them remembered; {usage.completion_tokens} written; "
        f"first after {first_s * 1000:.0f} ms, all after {whole_s:.2f} s]"
    )


def talk(chat: Chat, lines: Iterable[str]) -> None:
    """Answer line after line."""
    for line in lines:
        text = line.strip()
        if text == "/quit":
            return
        if text == "/new":
            chat.begin()
        elif text == "/retry":
            chat.retry()
        elif text:
            chat.ask(text)


def typed_lines() -> Iterable[str]:
    """What is typed, or stands in the pipe, until its end."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            yield input(prompt)
        except EOFError:
            return
        except KeyboardInterrupt:
            print()
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("--model", help="the server's first one otherwise")
    parser.add_argument("--system", help="what the model is told before the conversation")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--max-tokens", type=int, default=256)
    arguments = parser.parse_args()
    client = openai.OpenAI(base_url=f"{arguments.url}/v1", api_key=os.environ.get("OPENAI_API_KEY", "none"))
    model = arguments.model or client.models.list().data[0].id
    talk(Chat(client, model, arguments.system, arguments.temperature, arguments.max_tokens), typed_lines())


if __name__ == "__main__":
    main()
