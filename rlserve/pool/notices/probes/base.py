"""The contract of a probe, and how a cloud's metadata service is asked."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http import HTTPStatus

Probe = Callable[[], float | None]
"""Seconds until this machine is taken away; None while nobody has said so. It may raise: it is asked again."""

TIMEOUT_S = 2.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""The service is the machine's own: no proxy reaches it."""


def ask(url: str, headers: Mapping[str, str], *, method: str = "GET") -> str | None:
    """What the service answers; None where it has no such thing.

    Raises:
        OSError: it does not answer in time, or refuses.
    """
    request = urllib.request.Request(url, method=method, headers=dict(headers))
    try:
        with _OPENER.open(request, timeout=TIMEOUT_S) as answer:
            text: str = answer.read().decode()
            return text
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.NOT_FOUND:
            return None
        raise
