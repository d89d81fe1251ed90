"""What policies, pools and checks count and tell, for OpenTelemetry.

`instrument()` once, where the application sets up its telemetry, is all there is to do. Where no SDK is set
up, nobody hears of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .instrumenting import exclude, include, instrument, uninstrument

__all__ = ["exclude", "include", "instrument", "uninstrument"]


def __getattr__(name: str) -> object:
    # Pools import their part of this package; they need not wait for all of it.
    if name in __all__:
        return getattr(importlib.import_module(".instrumenting", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__]
