"""What a server says of itself before it is put under load: its models, and which pieces of text are a token to it."""

from __future__ import annotations

import asyncio
import string
from collections.abc import Iterable, Mapping
from typing import Any

import aiohttp

from rlserve.bench.client.client import ServerAddress
from rlserve.bench.prompts.exact import MIN_NUM_PIECES
from rlserve.bench.prompts.words import WORDS
from rlserve.errors import UserError

_TIMEOUT_S = 30.0
_NUM_AT_ONCE = 16


async def find_model(session: aiohttp.ClientSession, address: ServerAddress) -> str:
    """The only model of a server.

    Raises:
        UserError: it cannot be asked, or has none or several.
    """
    status, found = await _json(session, "GET", f"{address.url}/v1/models")
    if status != 200:
        raise UserError(f"{address.url}/v1/models answers with status {status}: name the model by --model")
    data = found.get("data")
    names = [str(card.get("id")) for card in data if isinstance(card, dict)] if isinstance(data, list) else []
    if len(names) != 1:
        raise UserError(f"{address.url} has {len(names)} models ({', '.join(names[:20])}): name one by --model")
    return names[0]


async def ask_pieces(session: aiohttp.ClientSession, address: ServerAddress, model: str) -> dict[str, int]:
    """Pieces of text that are one token each to the server, with its id: words with a space before them or, to a model
    that knows hardly any words, characters. Empty where the server has no ``/tokenize``.
    """
    free = asyncio.Semaphore(_NUM_AT_ONCE)

    async def ask(piece: str) -> tuple[str, list[Any]]:
        body = {"model": model, "prompt": piece, "add_special_tokens": False}
        async with free:
            status, found = await _json(session, "POST", f"{address.url}/tokenize", body)
        tokens = found.get("tokens") if status == 200 else None
        return piece, tokens if isinstance(tokens, list) else []

    async def alone(pieces: Iterable[str]) -> dict[str, int]:
        encoded = await asyncio.gather(*(ask(piece) for piece in pieces))
        ids = {tokens[0]: piece for piece, tokens in encoded if len(tokens) == 1 and type(tokens[0]) is int}
        return {piece: id_ for id_, piece in ids.items()}  # characters that the model does not know share an id

    if not (await ask(f" {WORDS[0]}"))[1]:
        return {}
    words = await alone(f" {word}" for word in WORDS)
    return words if len(words) >= MIN_NUM_PIECES else await alone(string.ascii_letters + string.digits + "+-*/=() ")


async def _json(
    session: aiohttp.ClientSession, method: str, url: str, body: Mapping[str, Any] | None = None
) -> tuple[int, dict[str, Any]]:
    """Status and object; an answer that is none is an empty one."""
    try:
        async with (
            asyncio.timeout(_TIMEOUT_S),
            session.request(method, url, json=body, allow_redirects=False) as response,
        ):
            found = await response.json(content_type=None)
            return response.status, found if isinstance(found, dict) else {}
    except ValueError:
        return response.status, {}
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise UserError(f"{url} cannot be asked: {error or type(error).__name__}; is the server up?") from error
