"""Health that tells the truth: checks, what policies have seen, and who asks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ..engine.finding import Finding, Status, Witness
from .asked import Asked
from .details import bearer, from_networks
from .handler import Endpoints
from .health import Health
from .report import Report, Result

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

__all__ = [
    "CPU",
    "Asked",
    "ContainerMemory",
    "DNSName",
    "Database",
    "DiskSpace",
    "Endpoints",
    "EventLoopLag",
    "FileDescriptors",
    "Finding",
    "HTTPEndpoint",
    "Health",
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

# The ready-made checks, each loaded with the others when the first is asked for.
_CHECKS = frozenset(__all__) - globals().keys()


def __getattr__(name: str) -> object:
    if name not in _CHECKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.checks"), name)
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | _CHECKS)
