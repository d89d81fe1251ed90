"""Redis and Valkey: whether a server answers, and whether it has what it needs to go on."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from typing import Any, ClassVar, Final

from ...engine import params
from ...engine.finding import Fact, Finding, Status, worst
from ...pool.drivers import driver_of
from ...typing import Seconds
from .base import Check, Watchdog, duration, in_time, megabytes, reason, seconds_of, thresholds

__all__ = ["RedisServer"]

_CLIENTS: Final = {("redis", "Redis"), ("valkey", "Valkey")}
_CLUSTERS: Final = {("redis", "RedisCluster"), ("valkey", "ValkeyCluster")}
_QUESTIONS: Final = [("PING",), ("INFO",)]
# What a pool gives its connections to follow a server that moves, to retry, and to ask in between: none of it
# is for a connection that asks once.
_NOT_OURS: Final = (
    "retry",
    "retry_on_error",
    "retry_on_timeout",
    "health_check_interval",
    "event_dispatcher",
    "himport_registry",
)
_NOT_OURS_EITHER: Final = ("maint", "orig_", "oss_")
_AS_PRIMARY: Final = "master"
_ROLES: Final = ("master", "replica")

Answer = str | Exception


class RedisServer(Check):
    """Ask a Redis or Valkey server whether it is there, and how much it has left.

    It asks PING and INFO at once, on a connection of its own that is made as the client makes its own and
    closed at once: nothing of the client is used, waited for or kept. So it sees whether the server answers;
    `health.watch(watch(client))` sees whether the client's pool has connections left.

    Args:
        client: of redis-py or valkey-py, of either kind: with an asynchronous one, the check is so, too.
        warn: share of the memory and of the clients that the server allows, above 0 and at most 1, from which
            on it warns. Memory that is full by intention, in a server that evicts any key for a new one, does
            not count. None: never.
        slow_after: seconds above 0 that an answer may take, or it warns. None: any time.
        role: "master" or "replica": what it must be, or it fails. None: either.
        max_lag: seconds, 0 or more, that a replica may be behind, or it warns. None: any time.
        timeout: seconds above 0 for all of it, but for finding the server's address.
        name: in reports.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: safe from any thread; with an asynchronous client, from any task. A cancelled one leaves no
        connection behind.
    """

    external: ClassVar[bool] = True

    def __init__(
        self,
        client: Any,
        *,
        warn: float | None = 0.8,
        slow_after: Seconds | None = 0.25,
        role: str | None = None,
        max_lag: Seconds | None = 10.0,
        timeout: Seconds = 1.0,
        name: str = "redis",
    ) -> None:
        super().__init__(name)
        # Not in `__new__`: that would hide these arguments from whoever asks for the signature.
        kind = _AsyncRedisServer if _is_async(client) else _SyncRedisServer
        object.__setattr__(self, "__class__", kind)
        thresholds(warn, None, most=1.0)
        self._client = client
        self._warn = warn
        self._slow_after = params.optional_seconds("slow_after", slow_after)
        self._role = None if role is None else params.one_of("role", role, _ROLES)
        self._max_lag = params.optional_seconds("max_lag", max_lag, above=False)
        self._timeout = seconds_of(timeout)

    def __call__(self) -> Finding | Awaitable[Finding]:
        """Ask the server.

        Returns:
            The time an answer took, in seconds, and the server's figures. It fails where there is no answer
            in time, or one that says the server cannot do its work. One that does not permit INFO passes.
        """
        raise NotImplementedError  # each kind has its own

    def _subject(self) -> str:
        words = self._client.connection_pool.connection_kwargs
        return str(words.get("path") or f"{words.get('host', '')}:{words.get('port', '')}").strip(":")

    def _connection(self, seconds: float) -> Any:
        """Return a connection as the client's pool would make it, not connected yet."""
        pool = self._client.connection_pool
        words = {
            word: value
            for word, value in pool.connection_kwargs.items()
            if word not in _NOT_OURS and not word.startswith(_NOT_OURS_EITHER)
        }
        for word in ("socket_timeout", "socket_connect_timeout"):
            words[word] = min(seconds, words.get(word) or seconds)
        return pool.connection_class(**words, retry=_no_retry(self._client), health_check_interval=0)

    def _judge(self, answers: list[Answer], took: float) -> Finding:
        ping, info = answers
        figures = {} if isinstance(info, Exception) else _figures(info)
        facts = _facts(figures)
        if isinstance(ping, Exception) and not _is_forbidden(ping):
            return Finding(Status.FAIL, _loading(figures) or reason(ping), facts=facts)
        found = [*self._complaints(figures)]
        if self._slow_after is not None and took >= self._slow_after:
            found.append((Status.WARN, f"answered after {duration(took)}"))
        told = [text for _, text in found]
        if isinstance(info, Exception):
            why = "INFO is not permitted" if _is_forbidden(info) else reason(info)
            told.append(f"its figures are not known: {why}")
        return Finding(worst(*(status for status, _ in found)), "; ".join(told), round(took, 6), "s", facts)

    def _no_answer(self, error: BaseException, seconds: float, *, late: bool) -> Finding:
        told = f"no answer within {seconds:.3g} s" if late else reason(error)
        if not late and "AuthenticationError" in type(error).__name__:
            told = f"it refuses the credentials: {told}"
        return Finding(Status.FAIL, told)

    def _complaints(self, figures: dict[str, str]) -> list[tuple[Status, str]]:
        """Return what is amiss, by the figures of INFO, as far as they are known."""
        return [
            one
            for one in (
                self._about_role(figures),
                self._about_link(figures),
                self._about_replicas(figures),
                self._about_memory(figures),
                self._about_clients(figures),
            )
            if one is not None
        ]

    def _about_role(self, figures: dict[str, str]) -> tuple[Status, str] | None:
        role = figures.get("role")
        if role is None or self._role is None or (role == _AS_PRIMARY) == (self._role == _AS_PRIMARY):
            return None
        if role == _AS_PRIMARY:
            return Status.FAIL, "it is a master, and should be a replica"
        return Status.FAIL, "it is a replica, and should be a master: it refuses writes as READONLY"

    def _about_link(self, figures: dict[str, str]) -> tuple[Status, str] | None:
        link = figures.get("master_link_status")
        if link == "down":
            since = _number(figures, "master_link_down_since_seconds")
            age = "" if since is None or since < 0.0 else f" for {duration(since)}"
            return Status.WARN, f"its link to the master has been down{age}"
        behind = _number(figures, "master_last_io_seconds_ago")
        if link is None or behind is None or self._max_lag is None or behind <= self._max_lag:
            return None
        return Status.WARN, f"nothing came from the master for {duration(behind)}"

    def _about_replicas(self, figures: dict[str, str]) -> tuple[Status, str] | None:
        lags = [
            _number(_pairs(text.split(","), "="), "lag") or 0.0
            for name, text in figures.items()
            if name.removeprefix("slave").isdecimal()
        ]
        if self._max_lag is None or max(lags, default=0.0) <= self._max_lag:
            return None
        return Status.WARN, f"a replica of it is {duration(max(lags))} behind"

    def _about_memory(self, figures: dict[str, str]) -> tuple[Status, str] | None:
        used, limit = _number(figures, "used_memory"), _number(figures, "maxmemory")
        if used is None or not limit:
            return None
        policy = figures.get("maxmemory_policy", "")
        told = f"{megabytes(used)} of {megabytes(limit)} of memory in use, {used / limit:.0%}"
        if used >= limit and policy == "noeviction":
            return Status.FAIL, f"{told}: it refuses writes"
        if self._warn is None or used / limit < self._warn or policy.startswith("allkeys"):
            return None
        return Status.WARN, told

    def _about_clients(self, figures: dict[str, str]) -> tuple[Status, str] | None:
        there, most = _number(figures, "connected_clients"), _number(figures, "maxclients")
        if there is None or not most or self._warn is None or there / most < self._warn:
            return None
        return Status.WARN, f"{there:.0f} of {most:.0f} clients connected, {there / most:.0%}"


class _SyncRedisServer(RedisServer):
    def __call__(self) -> Finding:
        connection, dog, seconds = None, None, in_time(self._timeout)
        try:
            connection = self._connection(seconds)
            dog = Watchdog(seconds, lambda: driver_of(connection).abort(connection))
            with dog:
                connection.connect()
                begun = time.perf_counter()
                connection.send_packed_command(connection.pack_commands(_QUESTIONS), check_health=False)
                answers: list[Answer] = []
                took = 0.0
                for _ in _QUESTIONS:
                    answers.append(_read(connection))
                    took = took or time.perf_counter() - begun
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is why there is no answer
            return self._no_answer(exc, seconds, late=_is_late(exc) or (dog is not None and dog.bit))
        finally:
            if connection is not None:
                with suppress(Exception):
                    connection.disconnect()
        return self._judge(answers, took)


class _AsyncRedisServer(RedisServer):
    async def __call__(self) -> Finding:
        connection, seconds = None, in_time(self._timeout)
        try:
            async with asyncio.timeout(seconds):
                connection = self._connection(seconds)
                await connection.connect()
                begun = time.perf_counter()
                questions = connection.pack_commands(_QUESTIONS)
                await connection.send_packed_command(questions, check_health=False)
                answers: list[Answer] = []
                took = 0.0
                for _ in _QUESTIONS:
                    answers.append(await _aread(connection))
                    took = took or time.perf_counter() - begun
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is why there is no answer
            return self._no_answer(exc, seconds, late=_is_late(exc))
        finally:
            if connection is not None:
                with suppress(Exception):
                    # Cut: a server that does not answer would not say goodbye either, which TLS waits for.
                    driver_of(connection).abort(connection)
                    await connection.disconnect(nowait=True)
        return self._judge(answers, took)


def _read(connection: Any) -> Answer:
    try:
        return _text(connection.read_response())
    except Exception as exc:
        if not _is_answer(exc):
            raise
        return exc


async def _aread(connection: Any) -> Answer:
    try:
        return _text(await connection.read_response())
    except Exception as exc:
        if not _is_answer(exc):
            raise
        return exc


def _text(answer: Any) -> str:
    return answer.decode("utf-8", "replace") if isinstance(answer, bytes) else str(answer)


def _names(kind: type) -> set[tuple[str, str]]:
    return {(base.__module__.partition(".")[0], base.__name__) for base in kind.__mro__}


def _is_async(client: Any) -> bool:
    """Return whether *client* is asynchronous.

    Raises:
        TypeError: it is no client, or one of a cluster, which is many servers.
    """
    names = _names(type(client))
    if names & _CLUSTERS:
        rule = "must be a client of one server: of a cluster, check each node, or ask CLUSTER INFO in a check"
        raise TypeError(f"client {rule}, got a {type(client).__name__}")
    if not names & _CLIENTS:
        params.refuse(TypeError, "client", "must be a client of redis-py or valkey-py", type(client))
    return any(".asyncio" in base.__module__ for base in type(client).__mro__)


def _no_retry(client: Any) -> Any:
    """Return what keeps the client's library from trying twice."""
    library = next(package for package, name in _names(type(client)) if (package, name) in _CLIENTS)
    within = f"{library}.asyncio" if _is_async(client) else library
    backoff = importlib.import_module(f"{library}.backoff")
    return importlib.import_module(f"{within}.retry").Retry(backoff.NoBackoff(), 0)


def _is_late(error: BaseException) -> bool:
    # redis-py's is no relative of Python's of the same name.
    return any(kind.__name__ == "TimeoutError" for kind in type(error).__mro__)


def _is_answer(error: BaseException) -> bool:
    """Return whether the server itself said so: after that, its next answer can be read."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"ResponseError", "BusyLoadingError"})


def _is_forbidden(error: BaseException) -> bool:
    return type(error).__name__ == "NoPermissionError" or str(error).startswith("NOPERM")


def _loading(figures: dict[str, str]) -> str | None:
    if figures.get("loading") != "1":
        return None
    share, left = _number(figures, "loading_loaded_perc"), _number(figures, "loading_eta_seconds")
    done = "" if share is None else f", {share:.0f}% of them"
    return f"it loads its data{done}" + ("" if left is None else f"; {duration(left)} left")


def _figures(info: str) -> dict[str, str]:
    """Return the figures of INFO by name."""
    return _pairs(info.splitlines(), ":")


def _pairs(words: Iterable[str], between: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        name, found, value = word.partition(between)
        if found:
            pairs[name] = value
    return pairs


def _number(figures: dict[str, str], name: str) -> float | None:
    with suppress(ValueError):
        return float(figures[name]) if name in figures else None
    return None


def _facts(figures: dict[str, str]) -> dict[str, Fact]:
    facts: dict[str, Fact] = {}
    for fact, names in {
        "version": ("valkey_version", "redis_version"),
        "role": ("role",),
        "maxmemory_policy": ("maxmemory_policy",),
    }.items():
        known = next((figures[name] for name in names if name in figures), None)
        if known is not None:
            facts[fact] = known
    for name in ("used_memory", "maxmemory", "connected_clients", "maxclients", "connected_slaves"):
        number = _number(figures, name)
        if number is not None:
            facts[{"connected_slaves": "replicas"}.get(name, name)] = number
    return facts
