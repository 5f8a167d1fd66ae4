"""What Weights & Biases is told besides by our configuration: the environment and wandb's own settings files.

Whoever says "do not upload" is obeyed, in whatever spelling: ``WANDB_MODE``, ``WANDB_DISABLED``, ``wandb offline`` and
``wandb disabled`` (which write a settings file). Of several the most reserved one counts.
"""

from __future__ import annotations

import configparser
import logging
import netrc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from rlserve.errors import UserError
from rlserve.tracking.config import WandbConfig

logger = logging.getLogger(__name__)

DEFAULT_PROJECT = "rlserve"
DEFAULT_BASE_URL = "https://api.wandb.ai"

Mode = Literal["online", "offline", "disabled"]

_MODES: Mapping[Mode, tuple[str, ...]] = {
    "disabled": ("disabled", "disable", "off", "no", "none", "false", "0"),
    "offline": ("offline", "dryrun"),
    "online": ("online", "run", "shared"),
}
"""Spellings without case, blanks, ``-`` and ``_``; the most reserved mode first."""
_FALSE = ("", "0", "false", "no", "off", "n", "f")


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """The environment, and wandb's settings as its files hold them."""

    environment: Mapping[str, str]
    settings: Mapping[str, str]

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Surroundings:
        """Read the settings of the user and, which count more, of the working folder."""
        parser = configparser.ConfigParser(interpolation=None)
        local = Path(environment.get("WANDB_DIR", "."))
        files = (_config_folder(environment), local / "wandb", local / ".wandb")
        for file in (folder.expanduser() / "settings" for folder in files):
            try:
                parser.read(file, encoding="utf-8")
            except (configparser.Error, UnicodeDecodeError) as error:
                logger.warning("wandb: no settings taken from %s: %s", file, error)
        return cls(environment=environment, settings=dict(parser["default"]) if "default" in parser else {})

    def names(self, variable: str, setting: str) -> bool:
        """Whether a variable of the environment or a setting names something."""
        return bool(self.environment.get(variable) or self.settings.get(setting))

    def modes(self) -> Iterator[tuple[Mode, str]]:
        """Every mode that is asked for, with who asks for it."""
        if mode := self.environment.get("WANDB_MODE", "").strip():
            yield _mode(mode), f"WANDB_MODE={mode}"
        elif mode := self.settings.get("mode", "").strip():
            yield _mode(mode), f"wandb's settings (mode={mode})"
        if _is_true(disabled := self.environment.get("WANDB_DISABLED", "")):
            yield "disabled", f"WANDB_DISABLED={disabled}"
        if _is_true(disabled := self.settings.get("disabled", "")):
            yield "disabled", f"wandb's settings (disabled={disabled})"


def choose_mode(config: WandbConfig, surroundings: Surroundings) -> Mode:
    """The mode to run in; without one from anybody, online where a key is found.

    Raises:
        UserError: ``online`` was asked for and there is no key.
    """
    asked = dict(reversed(list(surroundings.modes())))
    if config.mode != "auto":
        asked[config.mode] = "tracking.wandb.mode"
    if not asked:
        return "online" if has_key(surroundings) else "offline"
    mode = next(mode for mode in _MODES if mode in asked)
    if config.mode == "online" and mode != "online":
        logger.warning("wandb: %s says not to upload, and counts more than tracking.wandb.mode=online", asked[mode])
    if mode == "online" and not has_key(surroundings):
        raise UserError(
            f"wandb: online ({asked[mode]}) needs a key: run `wandb login`, set WANDB_API_KEY, or take "
            f"tracking.wandb.mode=offline"
        )
    return mode


def choose_names(config: WandbConfig, surroundings: Surroundings, run_name: str) -> tuple[str | None, str | None]:
    """Project and name of the run; None leaves one to the environment or the settings."""
    project, name = config.project, config.name
    if project is None and not surroundings.names("WANDB_PROJECT", "project"):
        project = DEFAULT_PROJECT
    if name is None and not surroundings.names("WANDB_NAME", "run_name"):
        name = run_name
    return project, name


def has_key(surroundings: Surroundings) -> bool:
    """Is there a key for the server: in the environment, or in the netrc file that ``wandb login`` writes?"""
    environment = surroundings.environment
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    netrc_file = Path(environment.get("NETRC", _home(environment) / ".netrc")).expanduser()
    if not netrc_file.is_file():
        return False
    server = environment.get("WANDB_BASE_URL") or surroundings.settings.get("base_url", DEFAULT_BASE_URL)
    try:
        return netrc.netrc(netrc_file).authenticators(urlsplit(server).netloc) is not None
    except netrc.NetrcParseError as error:
        logger.warning("wandb: no key taken from %s: %s", netrc_file, error)
        return False


def _home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("HOME", "~")).expanduser()


def _config_folder(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("WANDB_CONFIG_DIR", _home(environment) / ".config" / "wandb"))


def _mode(text: str) -> Mode:
    """The mode that a spelling stands for; one that is not known is no leave to upload."""
    plain = text.strip().lower().translate({ord(mark): None for mark in "-_ "})
    for mode, spellings in _MODES.items():
        if plain in spellings:
            return mode
    logger.warning("wandb: mode %r is none of %s; the run is kept offline", text, ", ".join(reversed(list(_MODES))))
    return "offline"


def _is_true(text: str) -> bool:
    return text.strip().lower() not in _FALSE
