"""The token that Ray's processes of one job know each other by."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

TOKEN_FILE = "ray_token"


def write_ray_token(path: Path) -> None:
    """Make a new one; only the user may read it."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
