"""Frameworks: one module each, and nothing imports a framework but its own."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

__all__: list[str] = []


@contextlib.contextmanager
def needing(framework: str, *, extra: str) -> Generator[None]:
    """Import a framework in this block, or tell how to install it.

    Args:
        framework: its name.
        extra: the extra of the distribution that brings it.

    Raises:
        ImportError: a module is missing.
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        raise ImportError(
            f"resilient.integrations.{extra} needs {framework}: pip install 'resilient-py[{extra}]'",
            name=missing.name,
        ) from missing
