"""Weights & Biases, with project, group, tags, configuration and resuming by run id, as its users know it.

Without a key the run is written offline below the run's folder, and ``wandb sync`` uploads it later. The run id is
kept in the folder, so a resumed run goes on as the same run.
"""

from __future__ import annotations

import configparser
import logging
import netrc
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import wandb

from rlserve.errors import UserError
from rlserve.tracking.base import Sink
from rlserve.tracking.config import WandbConfig
from rlserve.tracking.run_folder import RunFolder, write_atomically

logger = logging.getLogger(__name__)

STEP_METRIC = "training/global_step"
DEFAULT_BASE_URL = "https://api.wandb.ai"
INIT_TIMEOUT_S = 30.0
FINISH_TIMEOUT_S = 60.0

Mode = Literal["online", "offline", "disabled"]


class WandbSink(Sink):
    """One run of Weights & Biases. Opening it waits at most ``INIT_TIMEOUT_S``, closing ``FINISH_TIMEOUT_S``.

    The step is logged as a metric of its own that all others are drawn over, not as wandb's internal step, which may
    never go back: a resumed run repeats the steps after its checkpoint.

    Args:
        config: project, entity, group and tags.
        mode: from :func:`choose_mode`.
        folder: of the run; its name is the run's name.
        run_config: the resolved configuration, shown with the run.
    """

    name = "wandb"

    def __init__(self, config: WandbConfig, mode: Mode, folder: RunFolder, run_config: Mapping[str, object]) -> None:
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            group=config.group,
            tags=config.tags,
            name=folder.name,
            id=_run_id(folder),
            resume="allow",
            config=dict(run_config),
            allow_val_change=True,
            dir=str(folder.path),
            mode=mode,
            force=True,  # without a valid key: an error, never a question at the terminal
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=INIT_TIMEOUT_S,
                finish_timeout=FINISH_TIMEOUT_S,
                finish_timeout_raises=True,
            ),
        )
        self._run.define_metric(STEP_METRIC)
        self._run.define_metric("*", step_metric=STEP_METRIC)
        if mode == "offline":
            logger.info("wandb: the run is kept offline; upload it with: %s", folder.wandb_sync_command())
        elif mode == "online":
            logger.info("wandb: %s", self._run.url)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({STEP_METRIC: step, **metrics})

    def close(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)


def open_wandb(config: WandbConfig, mode: Mode, folder: RunFolder, run_config: Mapping[str, object]) -> WandbSink:
    """Open the run; where the server does not take it, keep it offline instead."""
    try:
        return WandbSink(config, mode, folder, run_config)
    except wandb.Error as error:
        if mode != "online":
            raise
        logger.warning("wandb: the server could not be reached or refused the run: %s", error)
        wandb.teardown()  # its service still holds the run's id
        return WandbSink(config, "offline", folder, run_config)


def choose_mode(config: WandbConfig, environment: Mapping[str, str]) -> Mode:
    """The mode to run in. ``auto`` obeys ``WANDB_MODE``, and else is online where a key is found.

    Raises:
        UserError: ``online`` was asked for and there is no key.
    """
    mode = config.mode
    if mode == "auto" and environment.get("WANDB_MODE") in ("online", "offline", "disabled"):
        mode = environment["WANDB_MODE"]  # type: ignore[assignment]
    if mode == "auto":
        return "online" if has_key(environment) else "offline"
    if mode == "online" and not has_key(environment):
        raise UserError(
            "tracking.wandb.mode: online needs a key: run `wandb login`, set WANDB_API_KEY, or take mode=offline"
        )
    return mode


def has_key(environment: Mapping[str, str]) -> bool:
    """Is there a key for the server: in the environment, or in the netrc file that ``wandb login`` writes?"""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    home = Path(environment.get("HOME", "~")).expanduser()
    netrc_file = Path(environment.get("NETRC", home / ".netrc")).expanduser()
    if not netrc_file.is_file():
        return False
    host = urlsplit(_base_url(environment, home)).netloc
    try:
        return netrc.netrc(netrc_file).authenticators(host) is not None
    except netrc.NetrcParseError as error:
        logger.warning("wandb: no key taken from %s: %s", netrc_file, error)
        return False


def _base_url(environment: Mapping[str, str], home: Path) -> str:
    """Address of the server: the environment's, or the one that ``wandb login --host`` remembered."""
    settings = configparser.ConfigParser()
    settings.read(Path(environment.get("WANDB_CONFIG_DIR", home / ".config" / "wandb")) / "settings")
    remembered = settings.get("default", "base_url", fallback=DEFAULT_BASE_URL)
    return environment.get("WANDB_BASE_URL", remembered)


def _run_id(folder: RunFolder) -> str:
    if not folder.wandb_run_id_file.exists():
        write_atomically(folder.wandb_run_id_file, uuid.uuid4().hex[:8])
    return folder.wandb_run_id_file.read_text(encoding="utf-8").strip()
