"""``GET /``: a page to chat with the model and to see the server's numbers. Three files, and nothing from elsewhere.

They are answered without a key, since they tell nothing; what they ask for wants one like everything else, and the page
asks its reader for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

router = APIRouter()

HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""The page may load its own two files and ask its own server, and nobody may frame it."""
PATHS = frozenset({"/", "/page.css", "/page.js"})


def _file(name: str, kind: str) -> Response:
    content = files("rlserve.serving.front.page").joinpath(name).read_bytes()
    return Response(content, media_type=f"{kind}; charset=utf-8", headers=dict(HEADERS))


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The page."""
    return _file("page.html", "text/html")


@router.get("/page.css", include_in_schema=False)
async def style() -> Response:
    """How it looks."""
    return _file("page.css", "text/css")


@router.get("/page.js", include_in_schema=False)
async def script() -> Response:
    """What it does."""
    return _file("page.js", "text/javascript")
