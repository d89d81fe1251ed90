"""Channels that send no calls to a server that is not doing well."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from ...engine import params

__all__ = ["health_channel_options"]

_ROUND_ROBIN: Final[list[dict[str, Any]]] = [{"round_robin": {}}]


def health_channel_options(
    service: str = "", *, service_config: Mapping[str, Any] | None = None
) -> list[tuple[str, str]]:
    """Return options by which a channel asks each server for its health, and sends calls to those that serve.

    The channel watches `grpc.health.v1.Health` of every server that its target resolves to, and goes round
    those that say `SERVING`. A server that does not have the health service counts as serving. Where none
    serves, calls fail with `UNAVAILABLE` at once, or wait if they are made with `wait_for_ready=True`.

    Args:
        service: what the servers are asked about, such as "shop.Payment"; "" is a server as a whole.
        service_config: what else the channel's service config says, such as `methodConfig`. A load-balancing
            policy in it takes the place of `round_robin`; `pick_first`, gRPC's own default, does not look at
            health. None: nothing.

    Returns:
        Options for `grpc.insecure_channel` and the like, and those of `grpc.aio`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: *service_config* cannot be written as JSON.

    Source: gRFC A17, client-side health checking.
    """
    if not isinstance(service, str):
        params.refuse(TypeError, "service", "must be text", service)
    if service_config is not None and not isinstance(service_config, Mapping):
        params.refuse(TypeError, "service_config", "must be a mapping or None", service_config)
    config = {
        "loadBalancingConfig": _ROUND_ROBIN,
        **(service_config or {}),
        "healthCheckConfig": {"serviceName": service},
    }
    try:
        text = json.dumps(config)
    except (TypeError, ValueError):
        params.refuse(ValueError, "service_config", "must be what JSON can say", service_config)
    return [("grpc.service_config", text)]
