"""Who looks after the demo's services: whoever ends is started again, and whoever has to end does."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
from examples.shop.orchestrator import (
    ENDED,
    KILLED,
    LIVE,
    MB,
    MEMORY,
    PROBE,
    READY,
    STARTED,
    UP,
    Care,
    Keeper,
    Probes,
    resident,
)
from tests.support.waiting import await_until

pytestmark = pytest.mark.faults

PROBES = Probes("/startupz", "/livez", "/readyz", period=0.01, timeout=0.2)
SLEEPS = "import sys; sys.stdin.read()"
ENDS = "pass"
# Grows by 64 MB and then stays.
GROWS = "kept = b'1' * (64 * 2**20); import sys; sys.stdin.read()"

Answer = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Rig:
    """A keeper of processes that do as they are told in *code*, and are asked how they are in their place."""

    def __init__(self, code: str, care: Care, answer: Answer | None = None) -> None:
        self.heard: list[dict[str, Any]] = []
        self.started: list[float] = []
        self.statuses = {"/healthz": 200, "/startupz": 200, "/livez": 200, "/readyz": 200}
        self.http = httpx.AsyncClient(
            base_url="http://service", transport=httpx.MockTransport(answer or self._answer)
        )
        self.keeper = Keeper(
            "service", lambda _: self._process(code), care, self.http, lambda _, line: self.heard.append(line)
        )

    def told(self, what: str) -> list[dict[str, Any]]:
        """Return what was told of one kind."""
        return [line for line in self.heard if line["note"] == what]

    def probed(self, kind: str) -> list[str]:
        """Return the answers to probes of one kind."""
        return [line["answer"] for line in self.told(PROBE) if line["kind"] == kind]

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(self.statuses[request.url.path])

    @asynccontextmanager
    async def _process(self, code: str) -> AsyncIterator[Process]:
        self.started.append(asyncio.get_running_loop().time())
        process = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", code, stdin=PIPE)
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@asynccontextmanager
async def keeping(code: str, care: Care, answer: Answer | None = None) -> AsyncIterator[Rig]:
    """Keep a service while the context is open."""
    rig = Rig(code, care, answer)
    task = asyncio.create_task(rig.keeper.run())
    try:
        yield rig
    finally:
        task.cancel()
        await asyncio.wait([task])
        await rig.http.aclose()
    assert task.cancelled()


async def test_service_that_ends_is_started_again() -> None:
    """As often as it does, and its end is told each time."""
    async with keeping(ENDS, Care()) as rig:
        await await_until(lambda: len(rig.told(STARTED)) >= 3, "three starts")

    assert [line["number"] for line in rig.told(STARTED)][:3] == [1, 2, 3]
    assert {line["code"] for line in rig.told(ENDED)} == {0}


async def test_service_that_ends_again_and_again_has_to_wait() -> None:
    """After the first time, and each time twice as long."""
    async with keeping(ENDS, Care(back_off=0.1)) as rig:
        await await_until(lambda: len(rig.started) >= 4, "four starts")

    _, second, third, fourth = rig.started[:4]
    assert third - second >= 0.1
    assert fourth - third >= 0.2


async def test_service_that_takes_too_much_memory_is_killed() -> None:
    """And started again; it is told how much it had."""
    async with keeping(GROWS, Care(memory={"service": 48 * MB})) as rig:
        await await_until(lambda: len(rig.told(STARTED)) >= 2, "a second start")

    killed, ended = rig.told(KILLED)[0], rig.told(ENDED)[0]
    assert killed["why"] == MEMORY
    assert killed["mb"] > 48
    assert ended["code"] == -signal.SIGKILL


async def test_service_may_take_what_it_may() -> None:
    """What it takes is told; the memory of others is nobody's business."""
    async with keeping(GROWS, Care(memory={"service": 256 * MB})) as rig:
        await await_until(lambda: rig.told(MEMORY) and rig.told(MEMORY)[-1]["mb"] > 64, "all of it taken")

    assert not rig.told(KILLED)
    assert resident(2**22 + 1) == 0


async def test_service_that_fails_three_probes_in_a_row_is_ended() -> None:
    """With SIGTERM, as a kubelet does it, and then it is started again."""
    async with keeping(SLEEPS, Care(probes=PROBES)) as rig:
        await await_until(lambda: "200" in rig.probed(LIVE), "a sign of life")
        rig.statuses["/livez"] = 503
        await await_until(lambda: bool(rig.told(ENDED)), "the end")

    assert rig.probed(LIVE)[-3:] == ["503"] * 3
    assert rig.told(KILLED)[0]["why"] == LIVE
    assert rig.told(ENDED)[0]["code"] == -signal.SIGTERM


async def test_failures_that_are_not_in_a_row_do_not_count() -> None:
    """Two, and an answer, and two more."""
    statuses = [200, 503, 503] * 10

    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(statuses.pop() if request.url.path == "/livez" and statuses else 200)

    async with keeping(SLEEPS, Care(probes=PROBES), answer) as rig:
        await await_until(lambda: not statuses, "all answers given")

    assert rig.probed(LIVE).count("503") == 20
    assert not rig.told(KILLED)


async def test_service_is_ready_from_the_first_answer_to_three_failures_in_a_row() -> None:
    """And again with one answer; nobody is started again for that."""
    async with keeping(SLEEPS, Care(probes=PROBES)) as rig:
        assert not rig.keeper.ready
        await await_until(lambda: rig.keeper.ready, "it is ready")
        rig.statuses["/readyz"] = 503
        await await_until(lambda: not rig.keeper.ready, "it is not ready")
        failed = rig.probed(READY).count("503")
        rig.statuses["/readyz"] = 200
        await await_until(lambda: rig.keeper.ready, "it is ready again")

    assert failed >= 3
    assert len(rig.told(STARTED)) == 1


async def test_service_that_nobody_probes_is_ready() -> None:
    """Once it has given a sign of life, that is told."""
    async with keeping(SLEEPS, Care()) as rig:
        assert rig.keeper.ready
        await await_until(lambda: bool(rig.told(UP)), "a sign of life")

    assert not rig.told(PROBE)


async def test_service_is_not_probed_before_it_has_started() -> None:
    """Until its start-up probe is answered, nothing else is asked."""
    async with keeping(SLEEPS, Care(probes=PROBES)) as rig:
        rig.statuses["/startupz"] = 503
        await asyncio.sleep(0.2)
        assert not rig.told(PROBE)
        rig.statuses["/startupz"] = 200
        await await_until(lambda: rig.keeper.ready, "it is ready")

    assert rig.heard[1]["note"] == UP


@pytest.mark.parametrize("outcome", ["timeout", "broken"])
async def test_probe_without_an_answer_failed(outcome: str) -> None:
    """Whether none comes in time, or the connection breaks."""

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/readyz":
            if outcome == "broken":
                raise httpx.ConnectError("nobody there")
            await asyncio.sleep(60)
        return httpx.Response(200)

    async with keeping(SLEEPS, Care(probes=PROBES), answer) as rig:
        await await_until(lambda: len(rig.probed(READY)) >= 2, "two probes")

    assert set(rig.probed(READY)) == {outcome}
    assert not rig.keeper.ready
