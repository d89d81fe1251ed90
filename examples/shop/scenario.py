"""Incident A4 played to one version of the shop, and what is watched meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from asyncio.subprocess import Process
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeAlias

import httpx

from examples.shop.figures import Run, Sample, Span, Transition
from examples.shop.incident import Settings, api_latency
from examples.shop.processes import ServiceDiedError, Shop, running_customers, running_shop

Tell: TypeAlias = Callable[[Run, Span, float], None]
"""Told a few times a second: the run so far, its present phase, and the time since the first request."""

_POLL = 0.25
_HAVE_POLICIES = ("currency", "checkout", "frontend")
_STATES = {"CircuitOpened": "open", "CircuitHalfOpened": "half-open", "CircuitClosed": "closed"}


async def play(version: str, settings: Settings, logs: Path, tell: Tell) -> Run:
    """Start a shop, play the incident to it, stop it again.

    Args:
        version: `bare` or `protected`.
        settings: How long and how hard.
        logs: A directory for what the processes print.
        tell: Is told how it goes.

    Returns:
        What was measured.

    Raises:
        ServiceDiedError: A process of the shop ended before its time.
    """
    run = Run(version, settings.spans())
    async with httpx.AsyncClient(timeout=5) as http, running_shop(version, logs) as shop:
        await shop.wait_until_up(http)
        url, seconds = shop.urls["frontend"], run.spans[-1].end
        async with running_customers(url, settings.rate, seconds, logs) as customers:
            assert customers.stdout is not None
            if not await customers.stdout.readline():
                raise ServiceDiedError("the load generator ended before it began")
            await _together(_collect(run, customers), Director(run, shop, http, tell).direct())
    return run


async def _together(*parts: Coroutine[Any, Any, None]) -> None:
    """Run all parts; a service that died is raised as itself, and not in a group."""
    try:
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(part)
    except ExceptionGroup as errors:
        died = errors.subgroup(ServiceDiedError)
        raise (died.exceptions[0] if died else errors) from None


async def _collect(run: Run, customers: Process) -> None:
    assert customers.stdout is not None
    async for line in customers.stdout:
        run.samples.append(Sample(**json.loads(line)))
    if await customers.wait() != 0:
        raise ServiceDiedError(f"the load generator ended with code {customers.returncode}")


class Director:
    """Turns the rates API slow and fast again, and writes down what can be seen from outside.

    Args:
        run: Where to write it down.
        shop: The shop to watch.
        http: The client to watch it with.
        tell: Is told how it goes.
    """

    def __init__(self, run: Run, shop: Shop, http: httpx.AsyncClient, tell: Tell) -> None:
        self._run = run
        self._shop = shop
        self._http = http
        self._tell = tell
        self._start = time.monotonic()
        self._read_up_to = dict.fromkeys(_HAVE_POLICIES, 0)

    async def direct(self) -> None:
        """Go through the phases."""
        for span in self._run.spans:
            control = await self._http.put(self._rates, json={"latency": api_latency(span)})
            self._run.api_calls.append((span.start, control.raise_for_status().json()["calls"]))
            while self._now < span.end:
                await self._look()
                self._tell(self._run, span, self._now)
                await asyncio.sleep(max(0.0, min(_POLL, span.end - self._now)))
        await self._look()

    async def _look(self) -> None:
        try:
            await self._read_counters()
        finally:
            # Afterwards: a reading that fails because a service died is told as what it is.
            await self._shop.check()

    async def _read_counters(self) -> None:
        control = await self._http.get(self._rates)
        self._run.api_calls.append((self._now, control.json()["calls"]))
        for service in _HAVE_POLICIES:
            query = f"/journal?after={self._read_up_to[service]}"
            for entry in (await self._http.get(self._shop.urls[service] + query)).json():
                self._note(service, entry)

    def _note(self, service: str, entry: dict[str, Any]) -> None:
        self._read_up_to[service] = entry["number"]
        event = f"{service}: {entry['policy']} {entry['event']}"
        self._run.events[event] = self._run.events.get(event, 0) + 1
        if entry["event"] in _STATES:
            breaker, state = f"{service}: {entry['policy']}", _STATES[entry["event"]]
            self._run.transitions.append(Transition(self._now - entry["age"], breaker, state))

    @property
    def _now(self) -> float:
        return time.monotonic() - self._start

    @property
    def _rates(self) -> str:
        return self._shop.urls["rates"] + "/control"
