"""Probers of the kind that orchestrators have: each probe a connection of its own, and one second for it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.health import slow
from tests.support import reaper
from tests.support.ports import free_port
from tests.support.waiting import wait_until
from tests.web.servers import eventually, fetch

from resilient.health import Health
from resilient.health.serving.server import serve

ROOT = Path(__file__).parents[2]
SOAK = os.environ.get("RESILIENT_SOAK") == "1"
SECONDS = 60.0 if SOAK else 2.5
RATE = 200.0
# On a machine of one's own. Where tests share it, a pause of theirs is not the endpoint's: there, nothing is
# anywhere near the two seconds of a check that is run for a probe.
P99 = 0.020
P99_SHARED = 0.5


@dataclass
class Prober:
    """Ask every *period* seconds, with *timeout* for each, and act as a kubelet does.

    It says that the container is beyond help after *failures* in a row, and well again after one success.
    """

    port: int
    path: str
    period: float = 0.05
    timeout: float = 1.0
    failures: int = 3
    verdicts: list[bool] = field(default_factory=list)
    restarts: int = 0

    async def run(self, until: Callable[[], bool], within: float = 20.0) -> None:
        """Probe until something has come about; or until it is clear that it does not."""
        failed, give_up_at = 0, time.monotonic() + within
        while time.monotonic() < give_up_at:
            well = await self._probe()
            self.verdicts.append(well)
            failed = 0 if well else failed + 1
            self.restarts += failed == self.failures
            if until():
                return
            await asyncio.sleep(self.period)

    def is_(self, well: bool) -> bool:
        """Tell whether the last verdict was that."""
        return self.verdicts[-1] is well

    async def _probe(self) -> bool:
        try:
            async with asyncio.timeout(self.timeout):
                return (await probe(self.port, self.path)) < 400
        except (OSError, TimeoutError):
            return False


async def probe(port: int, path: str) -> int:
    """Ask once as a kubelet does; return the status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = (
            f"GET {path} HTTP/1.1\r\nHost: 10.1.2.3:{port}\r\nUser-Agent: kube-probe/1.33\r\nAccept: */*\r\n"
        )
        writer.write(f"{head}Connection: close\r\n\r\n".encode())
        status = int((await reader.readline()).split()[1])
        await reader.read()
        return status
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def test_dependency_that_hangs_takes_the_process_out_of_service_and_restarts_nothing() -> None:
    """Liveness stays up; readiness fails within the second that the prober has, and recovers."""
    hangs = threading.Event()
    let_go = threading.Event()
    health = Health("shop", timeout=0.3, ttl=0.1, interval=0.1, answer_within=0.5)

    @health.check("postgres", critical=True)
    def postgres() -> None:
        if hangs.is_set():
            let_go.wait(10)

    async def outage(live: Prober, ready: Prober) -> None:
        for change, well in ((hangs.set, False), (hangs.clear, True)):
            change()
            if well:
                let_go.set()
            await asyncio.gather(
                live.run(lambda: len(live.verdicts) % 10 == 9), ready.run(functools.partial(ready.is_, well))
            )

    with health, serve(health, port=0) as serving:
        wait_until(lambda: fetch(serving.port, "/readyz")[0] == 200, "readiness")
        live, ready = Prober(serving.port, "/livez"), Prober(serving.port, "/readyz")
        asyncio.run(outage(live, ready))

    assert live.restarts == 0
    assert len(live.verdicts) >= 19
    # On a machine that stands still for a second, a probe or two may fail of which this here knows nothing.
    assert live.verdicts.count(False) <= 2
    assert ready.verdicts[-1]
    assert False in ready.verdicts


def test_probers_time_is_enough_while_a_check_hangs_for_the_first_time() -> None:
    """Nobody knows anything yet, and the answer is there before the prober's second is over."""
    let_go = threading.Event()

    def readiness() -> int | None:
        health = Health("shop", timeout=30.0)
        health.add(lambda: let_go.wait(20), "postgres", critical=True)
        with health, serve(health, port=0) as serving:
            try:
                return asyncio.run(asyncio.wait_for(probe(serving.port, "/readyz"), 1.0))
            except TimeoutError:
                return None

    try:
        # More than once only where the machine itself takes a quarter of a second.
        assert 503 in (readiness() for _ in range(3))
    finally:
        let_go.set()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[int]:
    """Serve the slow app by uvicorn, in a process of its own; yield the port."""
    port, log = free_port(), tmp_path / "log"
    words = ["-m", "uvicorn", "tests.health.slow:app", "--log-level", "warning", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    reaper.hold(process.pid, tmp_path)
    try:

        def answers() -> bool:
            with contextlib.suppress(OSError):
                return fetch(port, "/livez")[0] == 200
            return process.poll() is not None

        assert eventually(answers, 30)
        assert process.poll() is None, log.read_text()
        yield port
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        reaper.drop(process.pid)


@dataclass
class Storm:
    """What probes at a rate came to, whether the server keeps up or not."""

    statuses: list[int] = field(default_factory=list)
    took: list[float] = field(default_factory=list)

    async def run(self, port: int, seconds: float) -> None:
        """Send them: by the clock, and not when the one before has been answered."""
        begun, tasks = time.monotonic(), set[asyncio.Task[Any]]()
        paths = itertools.cycle(["/readyz", "/livez", "/health", "/readyz?verbose"])
        for number in range(int(seconds * RATE)):
            await asyncio.sleep(max(0.0, begun + number / RATE - time.monotonic()))
            tasks.add(asyncio.create_task(self._one(port, next(paths))))
        await asyncio.gather(*tasks)

    async def _one(self, port: int, path: str) -> None:
        begun = time.perf_counter()
        self.statuses.append(await probe(port, path))
        self.took.append(time.perf_counter() - begun)

    def percentile(self, share: float) -> float:
        """Return what *share* of the probes took at most, in seconds."""
        return sorted(self.took)[int(share * (len(self.took) - 1))]


@pytest.mark.slow
def test_storm_of_probes_runs_no_check_more_often(served: int) -> None:
    """200 a second against checks that take two seconds: answered from what is known, at once.

    Each check runs again when what it has found is older than `ttl`, and no sooner, however long it takes.
    """
    assert eventually(lambda: fetch(served, "/readyz")[0] == 200, 10)  # all have been run once
    first = json.loads(fetch(served, "/begun")[2])["begun"]
    storm = Storm()

    asyncio.run(storm.run(served, SECONDS))
    last = json.loads(fetch(served, "/begun")[2])["begun"]

    assert set(storm.statuses) == {200}
    assert len(storm.statuses) == int(SECONDS * RATE)
    told = f"p50 {storm.percentile(0.5) * 1e3:.1f} ms, p99 {storm.percentile(0.99) * 1e3:.1f} ms"
    assert storm.percentile(0.5) < (P99 if SOAK else P99_SHARED / 5), told
    assert storm.percentile(0.99) < (P99 if SOAK else P99_SHARED), told
    for name, begun in last.items():
        assert len(begun) > len(first[name])
        apart = [after - before for before, after in itertools.pairwise(begun)]
        assert min(apart) >= slow.APART[name], (name, apart)
        assert len(begun) <= 1 + (begun[-1] - begun[0]) / slow.APART[name]
