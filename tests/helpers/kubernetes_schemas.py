"""What Kubernetes, KubeRay and the Prometheus operator would say of a file."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

SCHEMA_VERSION = "1.33"
"""Of Kubernetes."""
OPERATORS = {"monitoring.coreos.com": "monitoring_schemas.json.gz", "ray.io": "rayjob_schema.json.gz"}
"""Their own definitions, without descriptions: the Prometheus operator's, v0.93, with (?i) first in patterns, and
KubeRay's of a RayJob, v1.5."""


def check_object(content: Any) -> None:
    """Raises the schema's error where a definition does not allow it, or does not name a key of it: Kubernetes drops
    those in silence."""
    group = content["apiVersion"].partition("/")[0]
    if group in OPERATORS:
        jsonschema.validate(content, _schema(group, content["kind"]))
    else:
        kubernetes_validate.validate(content, SCHEMA_VERSION, strict=True)


@cache
def _schema(group: str, kind: str) -> Any:
    """Closed for unknown keys."""
    definitions = json.loads(gzip.decompress(Path(__file__).with_name(OPERATORS[group]).read_bytes()))
    schema = definitions if group == "ray.io" else definitions[kind]
    schema["properties"]["metadata"] = {"type": "object"}
    return _closed(schema)


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inside = {name: _closed(part) for name, part in schema.items()}
    return {**inside, "additionalProperties": False} if isinstance(schema.get("properties"), dict) else inside
