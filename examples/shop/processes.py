"""The shop's processes: started on free ports, watched, and stopped whatever happens."""

from __future__ import annotations

import asyncio
import json
import os
import socket
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
        entrance: Where customers come in.
    """

    def __init__(self, urls: dict[str, str], processes: dict[str, Process], logs: Path) -> None:
        self.urls = urls
        self.entrance = urls["frontend"]
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
        while not await answers(http, self.urls[name]):
            await self.check()

    def _obituary(self, name: str, end: str) -> str:
        last_words = log_file(self._logs, name).read_text(errors="replace").splitlines()[-20:]
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
        variables = {**(environment or {}), "SHOP_URLS": json.dumps(urls)}
        processes: dict[str, Process] = {}
        for name, bound in sockets.items():
            running = running_service(
                name,
                bound,
                protections=protections,
                log=log_file(logs, name),
                hear=hear,
                environment=variables,
            )
            processes[name] = await stack.enter_async_context(running)
        try:
            yield Shop(urls, processes, logs)
        finally:
            # All are told before the first is waited for, below, one by one.
            for process in processes.values():
                tell_to_stop(process)


@asynccontextmanager
async def running_service(
    name: str,
    listener: socket.socket,
    *,
    protections: Collection[str],
    log: Path,
    hear: Hear,
    environment: Mapping[str, str],
) -> AsyncIterator[Process]:
    """Run one service while the context is open.

    Args:
        name: Which one.
        listener: What it listens on, from now on alone: when it dies, its callers are refused.
        protections: What is on of what protects the shop, see `service.PROTECTIONS`.
        log: A file for what it prints.
        hear: Is told what it tells of itself.
        environment: Further variables for it.
    """
    protecting = [word for protection in protections for word in ("--protect", protection)]
    arguments = [name, *protecting, "--fd", str(listener.fileno())]
    variables, handed_over = {**os.environ, **environment}, [listener.fileno()]
    child = spawned("examples.shop.service", arguments, log, env=variables, pass_fds=handed_over)
    async with child as process, heard(process, _reader(name, hear)):
        listener.close()
        yield process


@asynccontextmanager
async def running_load(
    url: str, crowds: Sequence[Crowd], patience: float, logs: Path
) -> AsyncIterator[Process]:
    """Run the load generator while the context is open; its reports come on its standard output."""
    visitors = [word for crowd in crowds for word in ("--crowd", str(crowd))]
    arguments = ["--url", url, "--patience", str(patience), *visitors]
    async with spawned("examples.shop.load", arguments, log_file(logs, "load")) as process:
        yield process


def _reader(name: str, hear: Hear) -> Callable[[bytes], None]:
    return lambda line: hear(name, json.loads(line))


async def answers(http: httpx.AsyncClient, url: str) -> bool:
    """Say whether a service gives a sign of life."""
    try:
        return (await http.get(f"{url}/healthz", timeout=0.5)).is_success
    except httpx.TransportError:
        return False


def log_file(logs: Path, name: str) -> Path:
    """Return the file for what a process of the shop prints."""
    return logs / f"{name}.log"
