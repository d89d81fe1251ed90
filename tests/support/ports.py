"""Free TCP ports that stay free while the server behind them is down."""

from __future__ import annotations

import random
import socket

# Below the range from which Linux (32768 on) and macOS (49152 on) take the ports of outgoing connections. A
# port from there could go, while its server is down, to a client's socket, even to one connecting to itself.
_CANDIDATES = range(15_000, 32_000)
_ATTEMPTS = 100


def free_port(host: str = "127.0.0.1") -> int:
    """Pick a port on which nothing listens.

    Raises:
        OSError: no free port was found in 100 tries.
    """
    for port in random.sample(_CANDIDATES, _ATTEMPTS):
        if _is_free(host, port):
            return port
    raise OSError(f"no free port on {host} between {_CANDIDATES.start} and {_CANDIDATES.stop}")


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port whose last connections are in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
