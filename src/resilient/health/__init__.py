"""Health that tells the truth: checks, what policies have seen, and who asks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ..engine.finding import Finding, Status, Witness
from .report import Report, Result
from .serving.asked import Asked
from .serving.details import bearer, from_networks

if TYPE_CHECKING:
    from .checks import (
        CPU,
        ContainerMemory,
        Database,
        DiskSpace,
        DNSName,
        EventLoopLag,
        FileDescriptors,
        HTTPEndpoint,
        MemoryGrowth,
        RedisServer,
        TCPPort,
        Threads,
        TLSCertificate,
    )
    from .checks.cgroups import Memory
    from .health import Health
    from .mapping.dependency_map import DependencyMap
    from .serving.handler import Endpoints

__all__ = [
    "CPU",
    "Asked",
    "ContainerMemory",
    "DNSName",
    "Database",
    "DependencyMap",
    "DiskSpace",
    "Endpoints",
    "EventLoopLag",
    "FileDescriptors",
    "Finding",
    "HTTPEndpoint",
    "Health",
    "Memory",
    "MemoryGrowth",
    "RedisServer",
    "Report",
    "Result",
    "Status",
    "TCPPort",
    "TLSCertificate",
    "Threads",
    "Witness",
    "bearer",
    "from_networks",
]

# Loaded when first asked for; the ready-made checks together.
_HOME_OF = dict.fromkeys({*__all__} - {*globals()}, "checks") | {
    "DependencyMap": "mapping.dependency_map",
    "Endpoints": "serving.handler",
    "Health": "health",
    "Memory": "checks.cgroups",
}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
