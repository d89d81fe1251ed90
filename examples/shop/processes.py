"""The shop's processes: started on free ports, watched, and stopped whatever happens."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import httpx

from examples.shop.crowds import Crowd
from examples.shop.service import NAMES

Hear: TypeAlias = Callable[[str, dict[str, Any]], None]
"""Told the lines of a service's journal: the service's name, and the line."""

ROOT = Path(__file__).resolve().parents[2]
_STARTUP = 30.0
_SHUTDOWN = 2.0


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
    """The five running services of one shop.

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
) -> AsyncIterator[Shop]:
    """Run the five services while the context is open.

    Each has a socket that is bound here, to a port of the system's choice, a log file in the folder *logs*,
    and a pipe on its standard input, whose end tells it to stop: the parent has closed it, or has died.

    Args:
        logs: A directory for what the services print.
        protections: What is on of what protects the shop: `calls`, `door`, both or nothing.
        hear: Is told what the services tell of themselves.
        environment: Further variables for the services.
    """
    async with AsyncExitStack() as stack:
        sockets = {name: stack.enter_context(_listen()) for name in NAMES}
        urls = {name: f"http://127.0.0.1:{bound.getsockname()[1]}" for name, bound in sockets.items()}
        variables = {**os.environ, **(environment or {}), "SHOP_URLS": json.dumps(urls)}
        protecting = [word for protection in protections for word in ("--protect", protection)]
        processes: dict[str, Process] = {}
        for name, bound in sockets.items():
            command = ["service", name, *protecting, "--fd", str(bound.fileno())]
            spawned = _spawned(command, _log_file(logs, name), env=variables, pass_fds=[bound.fileno()])
            processes[name] = await stack.enter_async_context(spawned)
            await stack.enter_async_context(_heard(name, processes[name], hear))
            # From here on only the service listens: when it dies, its callers are refused and do not queue.
            bound.close()
        try:
            yield Shop(urls, processes, logs)
        finally:
            # All are told before the first is waited for, below, one by one.
            for process in processes.values():
                _tell_to_stop(process)


@asynccontextmanager
async def running_load(url: str, crowds: Sequence[Crowd], logs: Path) -> AsyncIterator[Process]:
    """Run the load generator while the context is open; its reports come on its standard output."""
    visitors = [word for crowd in crowds for word in ("--crowd", str(crowd))]
    async with _spawned(["load", "--url", url, *visitors], _log_file(logs, "load")) as process:
        yield process


@asynccontextmanager
async def _heard(name: str, process: Process, hear: Hear) -> AsyncIterator[None]:
    """Read a service's journal until it ends, which it does with the process."""
    listening = asyncio.create_task(_listen_to(name, process, hear))
    try:
        yield
    finally:
        await _stop(process)
        await listening


async def _listen_to(name: str, process: Process, hear: Hear) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        if line.endswith(b"\n"):  # a service that is killed may leave half a line
            hear(name, json.loads(line))


@asynccontextmanager
async def _spawned(command: list[str], log: Path, **options: Any) -> AsyncIterator[Process]:
    module, *arguments = command
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", f"examples.shop.{module}", *arguments),
            stdin=PIPE,
            stdout=PIPE,
            stderr=output,
            cwd=ROOT,
            # A session of its own: Ctrl-C in a terminal reaches the parent alone, which stops its children.
            start_new_session=True,
            **options,
        )
    try:
        yield process
    finally:
        await _stop(process)


async def _stop(process: Process) -> None:
    _tell_to_stop(process)
    try:
        async with asyncio.timeout(_SHUTDOWN):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _tell_to_stop(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.close()


def _listen() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=512)


async def _answers(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(f"{url}/healthz", timeout=0.5)).is_success
    except httpx.TransportError:
        return False


def _log_file(logs: Path, name: str) -> Path:
    return logs / f"{name}.log"
