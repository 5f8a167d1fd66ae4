"""Maskers and filters by what the configuration calls them."""

from __future__ import annotations

from importlib import import_module
from typing import TypeVar

from rlserve.errors import UserError
from rlserve.serving.content.base import ContentFilter, Masker
from rlserve.serving.content.config import ContentConfig
from rlserve.serving.content.deny_list import read_deny_list
from rlserve.serving.content.filtering import Filtering
from rlserve.serving.content.masking import Masking

MadeT = TypeVar("MadeT", Masker, ContentFilter)


def create_masking(config: ContentConfig) -> Masking | None:
    """What is taken out of texts; None where nothing is.

    Raises:
        UserError: there is no such masker, or it needs a package that is not installed.
    """
    match config.masker:
        case None:
            return None
        case "presidio":
            from rlserve.serving.content.presidio import PresidioMasker

            return Masking(config, PresidioMasker(config))
        case path:
            return Masking(config, _made("masker", path, Masker))  # type: ignore[type-abstract]


def create_filtering(config: ContentConfig) -> Filtering | None:
    """What is refused; None where nothing is.

    Raises:
        UserError: there is no such filter, its rules cannot be used, or it needs a package that is not installed.
    """
    match config.filter:
        case None:
            return None
        case "deny_list":
            assert config.deny_list is not None
            return Filtering(config, read_deny_list(config.deny_list))
        case path:
            return Filtering(config, _made("filter", path, ContentFilter))  # type: ignore[type-abstract]


def _made(name: str, path: str, base: type[MadeT]) -> MadeT:
    """One of a user's own class."""
    module, _, class_name = path.replace(":", ".").rpartition(".")
    try:
        made = getattr(import_module(module), class_name)()
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"content.{name}={path} cannot be had: {error}") from error
    if not isinstance(made, base):
        raise UserError(f"content.{name}={path} is no {base.__name__} of rlserve.serving.content.base")
    return made
