"""The shop's processes: started on free ports, watched, and stopped whatever happens."""

from __future__ import annotations

import asyncio
import json
import os
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import httpx

from examples.children import heard, listen, spawned, tell_to_stop, url_of
from examples.shop.crowds import Crowd
from examples.shop.service import NAMES

Hear: TypeAlias = Callable[[str, dict[str, Any]], None]
"""Told the lines of a service's journal: the service's name, and the line."""

_STARTUP = 30.0


def cores() -> float:
    """Return how many processors this process may use: those it may run on, or its container's share."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # "max" for no quota, or no control groups at all
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split())
        return min(allowed, quota / period)
    return allowed


class ServiceDiedError(RuntimeError):
    """A process of the shop ended, or never came up, while it was needed."""


class Shop:
    """The running services of one shop.

    Attributes:
        urls: Where each service listens, by its name.
    """

    def __init__(self, urls: dict[str, str], processes: dict[str, Process], logs: Path) -> None:
        self.urls = urls
        self._processes = processes
        self._logs = logs

    async def check(self) -> None:
        """Raise `ServiceDiedError` if a service is not running any more."""
        await asyncio.sleep(0)  # lets the loop hear of a process that has just ended
        for name, process in self._processes.items():
            if process.returncode is not None:
                raise ServiceDiedError(self._obituary(name, f"ended with code {process.returncode}"))

    async def wait_until_up(self, http: httpx.AsyncClient) -> None:
        """Return when every service answers; `ServiceDiedError` if one does not within half a minute."""
        for name in self.urls:
            try:
                await asyncio.wait_for(self._wait_until_up(name, http), _STARTUP)
            except TimeoutError:
                raise ServiceDiedError(self._obituary(name, "does not answer")) from None

    async def _wait_until_up(self, name: str, http: httpx.AsyncClient) -> None:
        while not await _answers(http, self.urls[name]):
            await self.check()

    def _obituary(self, name: str, end: str) -> str:
        last_words = _log_file(self._logs, name).read_text(errors="replace").splitlines()[-20:]
        return "\n".join([f"{name} {end}", *last_words])


@asynccontextmanager
async def running_shop(
    logs: Path,
    protections: Collection[str] = (),
    hear: Hear = lambda service, line: None,
    environment: Mapping[str, str] | None = None,
    services: Sequence[str] = NAMES,
) -> AsyncIterator[Shop]:
    """Run the services while the context is open.

    Each has a socket that is bound here, to a port of the system's choice, a log file in the folder *logs*,
    and a pipe on its standard input, whose end tells it to stop: the parent has closed it, or has died.

    Args:
        logs: A directory for what the services print.
        protections: What is on of what protects the shop, see `service.PROTECTIONS`.
        hear: Is told what the services tell of themselves.
        environment: Further variables for the services.
        services: Which ones.
    """
    async with AsyncExitStack() as stack:
        sockets = {name: stack.enter_context(listen()) for name in services}
        urls = {name: url_of(bound) for name, bound in sockets.items()}
        variables = {**os.environ, **(environment or {}), "SHOP_URLS": json.dumps(urls)}
        protecting = [word for protection in protections for word in ("--protect", protection)]
        processes: dict[str, Process] = {}
        for name, bound in sockets.items():
            arguments, log = [name, *protecting, "--fd", str(bound.fileno())], _log_file(logs, name)
            child = spawned("examples.shop.service", arguments, log, env=variables, pass_fds=[bound.fileno()])
            processes[name] = await stack.enter_async_context(child)
            await stack.enter_async_context(heard(processes[name], _reader(name, hear)))
            # From here on only the service listens: when it dies, its callers are refused and do not queue.
            bound.close()
        try:
            yield Shop(urls, processes, logs)
        finally:
            # All are told before the first is waited for, below, one by one.
            for process in processes.values():
                tell_to_stop(process)


@asynccontextmanager
async def running_load(
    url: str, crowds: Sequence[Crowd], patience: float, logs: Path
) -> AsyncIterator[Process]:
    """Run the load generator while the context is open; its reports come on its standard output."""
    visitors = [word for crowd in crowds for word in ("--crowd", str(crowd))]
    arguments = ["--url", url, "--patience", str(patience), *visitors]
    async with spawned("examples.shop.load", arguments, _log_file(logs, "load")) as process:
        yield process


def _reader(name: str, hear: Hear) -> Callable[[bytes], None]:
    return lambda line: hear(name, json.loads(line))


async def _answers(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(f"{url}/healthz", timeout=0.5)).is_success
    except httpx.TransportError:
        return False


def _log_file(logs: Path, name: str) -> Path:
    return logs / f"{name}.log"
