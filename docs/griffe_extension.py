"""Shows docstrings and signatures as they are meant; for `mkdocs.yml`.

griffe takes a section it does not know, such as "Concurrency: ...", for a box
with its first line as the title, and shows a default as the source spells it,
even where that is a constant nobody has heard of.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

import griffe

_OWN_SECTION = re.compile(
    r"^(Concurrency|Source): (.*(?:\n[ \t]+\S.*)*)", re.MULTILINE
)
_CONSTANT = re.compile(r"_?[A-Z][A-Z_]+")


class AsMeant(griffe.Extension):
    """Turns our own sections into paragraphs, and constants into values."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of *obj*."""
        if obj.docstring is not None:
            obj.docstring.value = _OWN_SECTION.sub(
                _paragraph, obj.docstring.value
            )

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Rewrite the defaults of *func*."""
        for parameter in func.parameters:
            name = str(parameter.default)
            if _CONSTANT.fullmatch(name):
                parameter.default = _shown(
                    getattr(importlib.import_module(func.module.path), name)
                )


def _paragraph(section: re.Match[str]) -> str:
    name, text = section.groups()
    return f"**{name}:** {' '.join(text.split())}"


def _shown(value: Any) -> str:
    return (
        f"{value.__module__}.{value.__qualname__}"
        if callable(value)
        else repr(value)
    )
