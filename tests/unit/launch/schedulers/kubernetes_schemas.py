"""What Kubernetes and KubeRay would say of a file."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

SCHEMA_VERSION = "1.33"
"""Of Kubernetes."""


def check_rayjob(content: Any) -> None:
    """Raises jsonschema's error where KubeRay's own definition of a RayJob, v1.5, does not allow it, or does not name a
    key of it: Kubernetes drops those in silence."""
    jsonschema.validate(content, _rayjob_schema())


@cache
def _rayjob_schema() -> Any:
    """Its descriptions were left out."""
    schema = json.loads(gzip.decompress(Path(__file__).with_name("rayjob_schema.json.gz").read_bytes()))
    schema["properties"]["metadata"] = {"type": "object"}
    return _closed(schema)


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inside = {name: _closed(part) for name, part in schema.items()}
    return {**inside, "additionalProperties": False} if isinstance(schema.get("properties"), dict) else inside
