"""An incident played to one version of the shop, and what is watched meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from asyncio.subprocess import Process
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeAlias

import httpx

from examples.shop.figures import Call, Note, Run, Sample, Span, Transition
from examples.shop.incident import Incident, Settings, Version
from examples.shop.processes import ServiceDiedError, Shop, running_load

Tell: TypeAlias = Callable[[Run, Span, float], None]
"""Told a few times a second: the run so far, its present phase, and the time since the first request."""

_POLL = 0.25
_STATES = {"CircuitOpened": "open", "CircuitHalfOpened": "half-open", "CircuitClosed": "closed"}


async def play(incident: Incident, version: Version, settings: Settings, logs: Path, tell: Tell) -> Run:
    """Start a shop, play the incident to it, stop it again.

    Args:
        incident: What happens.
        version: To which of its shops.
        settings: How long and how hard.
        logs: A directory for what the processes print.
        tell: Is told how it goes.

    Returns:
        What was measured.

    Raises:
        ServiceDiedError: A process of the shop ended before its time.
    """
    run = Run(version.name, incident.spans(settings, version))
    recorder = Recorder(run)
    crowds = incident.crowds(settings, version)
    async with AsyncExitStack() as stack:
        found = await stack.enter_async_context(incident.surroundings(settings, logs, recorder.hear))
        environment = {**incident.environment(settings), **version.environment, **found}
        shop = await stack.enter_async_context(incident.shop(version, logs, recorder.hear, environment))
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=5))
        await shop.wait_until_up(http)
        visiting = running_load(shop.entrance, crowds, settings.patience, logs)
        load = await stack.enter_async_context(visiting)
        assert load.stdout is not None
        if not await load.stdout.readline():
            raise ServiceDiedError("the load generator ended before it began")
        recorder.start()
        await _together(
            _collect(run, load),
            _direct(incident, recorder, shop, http, tell),
            _happen(incident, recorder),
        )
        recorder.finish()
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


async def _collect(run: Run, load: Process) -> None:
    assert load.stdout is not None
    async for line in load.stdout:
        run.samples.append(Sample(**json.loads(line)))
    if await load.wait() != 0:
        raise ServiceDiedError(f"the load generator ended with code {load.returncode}")


async def _direct(
    incident: Incident, recorder: Recorder, shop: Shop, http: httpx.AsyncClient, tell: Tell
) -> None:
    """Go through the phases: set the rates API, count its calls, see whether everybody is still there."""
    run, control = recorder.run, shop.urls["rates"] + "/control"
    for span in run.spans:
        answer = await http.put(control, json={"latency": incident.api_latency(span)})
        recorder.count_api_calls(answer, span.start)
        while recorder.now < span.end:
            await _look(recorder, shop, http)
            tell(run, span, recorder.now)
            await asyncio.sleep(max(0.0, min(_POLL, span.end - recorder.now)))
    await _look(recorder, shop, http)


async def _happen(incident: Incident, recorder: Recorder) -> None:
    for span in recorder.run.spans:
        await asyncio.sleep(span.start - recorder.now)
        await incident.begin(span, recorder.hear)


async def _look(recorder: Recorder, shop: Shop, http: httpx.AsyncClient) -> None:
    try:
        recorder.count_api_calls(await http.get(shop.urls["rates"] + "/control"))
    finally:
        # Afterwards: a reading that fails because a service died is told as what it is.
        await shop.check()


class Recorder:
    """Writes down what the services tell, with the time of its telling.

    Args:
        run: Where to write it down.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._start = time.monotonic()
        self._over = False
        self._waiting: dict[tuple[str, int], tuple[str, float]] = {}

    def start(self) -> None:
        """Let time begin, for the first request is sent; what was read before has no time."""
        self._start = time.monotonic()
        self.run.limits.clear()
        self.run.notes.clear()

    @property
    def now(self) -> float:
        """The time since the first request."""
        return time.monotonic() - self._start

    def count_api_calls(self, answer: httpx.Response, at: float | None = None) -> None:
        """Write down a reading of the rates API's own counter."""
        calls = answer.raise_for_status().json()["calls"]
        self.run.api_calls.append((self.now if at is None else at, calls))

    def hear(self, service: str, line: dict[str, Any]) -> None:
        """Write down a line of a service's journal, until the run is over."""
        if self._over:
            return
        if "call" in line:
            self._waiting[service, line["call"]] = line["of"], self.now
        elif "ended" in line:
            self._ended(service, line["ended"])
        elif "limit" in line:
            self.run.limits.append((self.now, line["limit"]))
        elif "note" in line:
            self.run.notes.append(Note(self.now, line.pop("note"), line))
        else:
            self._happened(f"{service}: {line['policy']}", line["event"])
            if "where" in line:
                self.run.notes.append(Note(self.now, line["event"], line))

    def finish(self) -> None:
        """End the run; calls that are still under way count as having lasted until now."""
        for service, number in list(self._waiting):
            self._ended(service, number)
        self._over = True

    def _ended(self, service: str, number: int) -> None:
        called, since = self._waiting.pop((service, number))
        self.run.calls.append(Call(since, called, self.now - since))

    def _happened(self, policy: str, event: str) -> None:
        self.run.events[f"{policy} {event}"] = self.run.events.get(f"{policy} {event}", 0) + 1
        if event in _STATES:
            self.run.transitions.append(Transition(self.now, policy, _STATES[event]))
