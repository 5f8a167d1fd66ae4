"""Rendering the files of a job from templates, which lie beside the scheduler that they are for."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined, TemplateError

from rlserve.errors import UserError
from rlserve.launch.schedulers.plan import JobPlan

SUFFIX = ".j2"


def render_templates(own: Path, plan: JobPlan, **more: Any) -> Mapping[str, str]:
    """All templates of the folder ``own``, by the name of the file that each becomes.

    A template has ``plan`` and its ``launch``, what ``more`` names, and the filters ``shell`` and ``json``,
    which quote a text. A file of the same name in ``launch.templates`` is taken instead.

    Raises:
        UserError: a template of the user's is wrong.
    """
    folders = [own] if plan.launch.templates is None else [Path(plan.launch.templates), own]
    environment = Environment(
        loader=ChoiceLoader([FileSystemLoader(folder) for folder in folders]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # shell and YAML, quoted by the filters
    )
    environment.filters |= {"shell": lambda text: shlex.quote(str(text)), "json": json.dumps}
    rendered = {}
    for path in sorted(own.glob(f"*{SUFFIX}")):
        try:
            template = environment.get_template(path.name)
            text = template.render(plan=plan, launch=plan.launch, **more)
        except TemplateError as error:
            raise UserError(f"{path.name} (launch.templates={plan.launch.templates}): {error}") from error
        rendered[path.name.removesuffix(SUFFIX)] = text
    return rendered
