"""What outlives what: forks, files, loops one after another, and objects that are copied."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.waiting import wait_until

from resilient import deadline
from resilient.health import EventLoopLag, Health, Status
from resilient.testing import FakeClock


def of_child(ask: Any) -> str:
    """Return what *ask* returns in a forked child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, str(ask()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return told


def test_child_has_its_own_start_before_it() -> None:
    """What the parent has passed says nothing of the child."""
    health = Health("shop")
    health.check("orders", critical=True)(lambda: broken is None)
    broken = None
    assert health.report("startup").status is Status.PASS
    broken = OSError()
    assert of_child(lambda: health.report("startup").status.value) == "fail"
    assert health.report("startup").status is Status.PASS


def test_child_goes_on_draining() -> None:
    """It was the process that was told to end."""
    health = Health("shop")
    health.drain("deploying")
    assert of_child(lambda: health.report("ready").output) == "draining: deploying"


def test_file_of_the_next_one_stays(tmp_path: Path) -> None:
    """Whoever closes takes away what is his, at once and never again."""
    path, health = tmp_path / "health", Health("shop")
    for _ in range(20):
        health.write(path, group="live", every=0.001).close()
        assert not path.exists()
        with health.write(path, group="live", every=60):
            assert path.exists()


def test_file_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    """Not in the log of a thread."""
    with pytest.raises(FileNotFoundError):
        Health("shop").write(tmp_path / "nowhere" / "health", group="live")


def test_file_ends_with_the_health(tmp_path: Path) -> None:
    """Its thread, too; the file grows old."""
    health = Health("shop")
    beat = health.write(tmp_path / "health", group="live", every=0.001)
    del health
    wait_until(lambda: not beat._thread.is_alive(), "the thread has ended")


def test_health_is_one_of_a_kind() -> None:
    """A copy is the same; to be sent to another process it is not fit, and says so."""
    health = Health("shop")
    assert copy.copy(health) is health
    assert copy.deepcopy([health])[0] is health
    with pytest.raises(TypeError, match="the Health of 'shop' cannot be pickled: it belongs to one process"):
        pickle.dumps(health)


def test_reason_to_drain_is_one_line_without_secrets() -> None:
    """It comes from operators, who copy it from anywhere."""
    health = Health("shop")
    health.drain("see https://ops:hunter2@wiki/\nrun 7" + "x" * 1000)
    output = health.report("ready").output
    assert output.startswith("draining: see https://ops:***@wiki/ run 7x")
    assert len(output) <= 300


def test_whoever_asks_waits_no_longer_than_his_deadline() -> None:
    """The checks have their own."""
    hold = threading.Event()
    health = Health("shop", answer_within=30, timeout=30)
    health.add(hold.wait, "orders")
    begun = time.monotonic()
    with deadline(0.05):
        assert health.report().result("orders").status is Status.UNKNOWN
    assert time.monotonic() - begun < 10
    hold.set()


def test_check_on_the_wrong_loop_is_told_what_helps() -> None:
    """A lock, or a pool, of one loop, asked for on another one."""
    loops: list[asyncio.Event] = []

    async def needs_its_loop() -> None:
        await loops[0].wait()

    health = Health("shop", timeout=5, answer_within=5)
    health.add(needs_its_loop, "orders")

    async def main() -> None:
        loops.append(asyncio.Event())
        waiting = asyncio.create_task(loops[0].wait())
        await asyncio.sleep(0)  # now the event belongs to this loop
        report = await asyncio.to_thread(health.report)
        assert report.result("orders").output.endswith("; call health.start() on the loop that it belongs to")
        waiting.cancel()

    asyncio.run(main())
    health.close()


def test_start_on_a_loop_brings_the_checks_there() -> None:
    """Though threads have asked before."""
    seen: list[asyncio.AbstractEventLoop] = []

    async def look() -> None:
        seen.append(asyncio.get_running_loop())

    clock = FakeClock()
    health = Health("shop", clock=clock)
    health.add(look, "orders")
    health.report()

    async def main() -> None:
        health.start()
        clock.advance(60)
        await asyncio.to_thread(health.report)
        assert seen[1] is asyncio.get_running_loop()
        assert seen[0] is not seen[1]

    asyncio.run(main())
    health.close()


def test_what_blocks_its_loop_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody can cut it off, but everybody can be told."""
    clock = FakeClock()
    health = Health("shop", timeout=0.01, clock=clock)

    async def blocks() -> None:
        time.sleep(0.6)  # noqa: ASYNC251 - that is the point

    health.add(blocks, "orders")

    async def main() -> None:
        for _ in range(2):
            await health.areport()
            clock.advance(60)

    caplog.set_level(logging.WARNING, "resilient")
    asyncio.run(main())
    told = [one.getMessage() for one in caplog.records if "stood still" in one.getMessage()]
    assert len(told) == 1
    assert "check 'orders' was under way: what blocks, there or elsewhere on the loop, has to be" in told[0]


def test_who_is_deaf_does_not_block(caplog: pytest.LogCaptureFixture) -> None:
    """A check that ignores its cancellation leaves the loop to others."""
    health = Health("shop", timeout=0.01)

    async def deaf() -> None:
        until = time.monotonic() + 0.7
        while time.monotonic() < until:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    health.add(deaf)

    async def main() -> None:
        await health.areport()
        while (await health.areport()).result("deaf").running_for is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    caplog.set_level(logging.WARNING, "resilient")
    asyncio.run(main())
    assert not [one for one in caplog.records if "stood still" in one.getMessage()]


def test_lag_is_measured_on_one_loop_after_another() -> None:
    """A server that is started again in the same process has another loop."""
    clock = FakeClock()
    health = Health("shop", clock=clock)
    health.add(EventLoopLag())

    async def ask() -> Status:
        await health.areport()  # offers the loop
        await asyncio.sleep(0)
        clock.advance(60)
        return (await health.areport()).result("event-loop").status

    assert asyncio.run(ask()) is Status.PASS
    assert asyncio.run(ask()) is Status.PASS


def test_secret_is_known_by_the_name_of_its_fact() -> None:
    """The value says nothing by itself."""
    from resilient.health import Finding

    health = Health("shop")
    facts = {
        "password": "hunter2",
        "api_key": "abc",
        "mount": "/var",
        "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
    }
    health.check("orders")(lambda: Finding(Status.WARN, "Cookie: session=abc; id=7", facts=facts))
    result = health.report().result("orders")
    assert result.facts == {"password": "***", "api_key": "***", "mount": "/var", "jwt": "***"}
    assert result.output == "Cookie: ***"
