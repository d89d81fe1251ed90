"""gRPC: health that servers tell, and policies around the calls that they serve and make."""

from .aio_server import AioResilienceServerInterceptor
from .channels import health_channel_options
from .health import AioHealthServicer, HealthServicer, add_health
from .server import ResilienceServerInterceptor
from .statuses import NEVER, Refusal, refusal_of, told_pushback

__all__ = [
    "NEVER",
    "AioHealthServicer",
    "AioResilienceServerInterceptor",
    "HealthServicer",
    "Refusal",
    "ResilienceServerInterceptor",
    "add_health",
    "health_channel_options",
    "refusal_of",
    "told_pushback",
]
