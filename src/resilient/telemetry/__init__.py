"""What policies, pools and checks count and tell, for OpenTelemetry.

`instrument()` once, where the application sets up its telemetry, is all there is to do. Where no SDK is set
up, nobody hears of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..engine.latency import Recorder
    from ..engine.measure import Measure, Metered, Metric, counter, gauge, histogram, up_down
    from .instrumenting import exclude, include, instrument, uninstrument
    from .logs import not_exported
    from .spans import anote_resend, note_resend

__all__ = [
    "Measure",
    "Metered",
    "Metric",
    "Recorder",
    "anote_resend",
    "counter",
    "exclude",
    "gauge",
    "histogram",
    "include",
    "instrument",
    "not_exported",
    "note_resend",
    "uninstrument",
    "up_down",
]

# Loaded when they are asked for: pools import their part of this package, and need not wait for all of it.
_HOMES: Final = {
    "..engine.latency": ("Recorder",),
    "..engine.measure": ("Measure", "Metered", "Metric", "counter", "gauge", "histogram", "up_down"),
    ".instrumenting": ("exclude", "include", "instrument", "uninstrument"),
    ".logs": ("not_exported",),
    ".spans": ("anote_resend", "note_resend"),
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home, __name__), name)


def __dir__() -> list[str]:
    return [*__all__]
