"""gRPC: health that servers tell, and policies around the calls that they serve and make."""

from .aio_server import AioResilienceServerInterceptor
from .channels import health_channel_options
from .client import (
    FAILURES,
    AioResilienceClientInterceptors,
    ClientStats,
    ResilienceClientInterceptor,
    Rpc,
    is_failure,
    is_transient,
    status_in,
)
from .health import AioHealthServicer, HealthServicer, add_health
from .server import ResilienceServerInterceptor
from .statuses import NEVER, Refusal, refusal_of, told_pushback

__all__ = [
    "FAILURES",
    "NEVER",
    "AioHealthServicer",
    "AioResilienceClientInterceptors",
    "AioResilienceServerInterceptor",
    "ClientStats",
    "HealthServicer",
    "Refusal",
    "ResilienceClientInterceptor",
    "ResilienceServerInterceptor",
    "Rpc",
    "add_health",
    "health_channel_options",
    "is_failure",
    "is_transient",
    "refusal_of",
    "status_in",
    "told_pushback",
]
