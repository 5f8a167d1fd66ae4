"""Imports of a worker, which are most of its start: only what its role needs, and without the garbage collector."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

_PASSED_OVER = "scipy"
"""Transformers imports it wherever it is installed, for losses of object detection: more than a quarter of what a
trainer's imports take, and no worker computes with it."""


@contextmanager
def importing() -> Iterator[None]:
    """Within, imports take a fifth less: nothing is garbage yet, and the collector would look for it all the time. From
    the end on it passes over all that there is: a collection that looks at all modules holds engine steps up for a
    quarter of a second. Whoever drops something big calls :func:`look_at_all`.

    What was there before is collected first, while there is little. The few thousand objects that imports leave behind
    stay: to look for them among all others takes as long as a tenth of the imports. Within another such block this one
    does nothing.
    """
    if not gc.isenabled():
        yield
        return
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def import_now(modules: Sequence[str]) -> None:
    """Import what was not yet, as if there were no SciPy."""
    missing = [name for name in modules if name not in sys.modules]
    if missing:
        with importing(), _without(_PASSED_OVER):
            for name in missing:
                import_module(name)


def look_at_all() -> None:
    """After something big was dropped that may have been there when something was imported: let the collector find what
    is left of it."""
    gc.unfreeze()


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Let nobody find a package, unless it has been imported already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # how Python is told that there is none
    try:
        yield
    finally:
        del sys.modules[package]
