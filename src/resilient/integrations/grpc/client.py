"""Policies around the calls that gRPC clients make: what users import of it."""

from __future__ import annotations

from .client_aio import AioResilienceClientInterceptors
from .client_errors import FAILURES, is_failure, is_transient, status_in
from .client_rpc import ClientStats, Rpc
from .client_sync import ResilienceClientInterceptor

__all__ = [
    "FAILURES",
    "AioResilienceClientInterceptors",
    "ClientStats",
    "ResilienceClientInterceptor",
    "Rpc",
    "is_failure",
    "is_transient",
    "status_in",
]
