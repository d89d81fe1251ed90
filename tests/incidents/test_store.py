"""The demo's store for carts: five processes that do what they are told, and end with who started them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis
from examples.children import ROOT
from examples.shop.processes import ServiceDiedError
from examples.shop.store import RunningStore, running_store
from tests.support.valkey import client_for
from tests.support.waiting import await_until, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.faults]

_REPLICA, _SENTINEL = 1, 2  # of the five, in the order in which they are started

_PARENT = """
import asyncio, pathlib, sys
from examples.shop.store import running_store

async def main():
    async with running_store(pathlib.Path(sys.argv[1])):
        print("up", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_store_forgets_nothing_when_it_is_killed(tmp_path: Path) -> None:
    """It refuses connections before it is back, and then has all that was in it; so has its replica."""
    seen: list[dict[str, object]] = []
    async with running_store(tmp_path / "log") as store:
        host, port = store.address.primary
        with client_for(f"redis://{host}:{port}") as client:
            client.hset("cart:ada", "ada/1", "tea")
            for command in ("kill", "refuse", "restart"):
                await store.do(command, seen.append)
            kept = client.hgetall("cart:ada")
            await store.do("tell", seen.append)

    assert kept == {b"ada/1": b"tea"}
    assert [line["note"] for line in seen] == ["killed", "refusing", "starting", "back", "in store"]
    assert seen[-1]["entries"] == ["ada/1"]


async def test_store_that_cannot_do_what_it_is_told_says_so(tmp_path: Path) -> None:
    """And ends, with all of its processes; who told it is told why."""
    async with running_store(tmp_path / "log") as store:
        host, port = store.address.primary
        with pytest.raises(ServiceDiedError, match=r"has ended with code 1(.|\n)*no attribute 'explode'"):
            await store.do("explode", print)

        with client_for(f"redis://{host}:{port}") as client:
            await await_until(lambda: not _is_up(client), "the primary is gone")


async def test_store_waits_for_servers_that_stall(tmp_path: Path) -> None:
    """As they do on a busy machine: the sentinel that is told to replace the primary, and who is to do so."""
    seen: list[dict[str, object]] = []
    async with running_store(tmp_path / "log") as store:
        stalled = [_server(store, _SENTINEL), _server(store, _REPLICA)]
        for process in stalled:
            process.suspend()
        told = asyncio.create_task(store.do("replace", seen.append))
        await asyncio.sleep(1.5)
        assert not told.done()
        for process in stalled:
            process.resume()
        await await_until(lambda: bool(seen), "the sentinels have made the replica the primary")
        told.cancel()

    assert [line["note"] for line in seen] == ["promoted"]


async def test_store_that_is_left_while_it_waits_leaves_nobody_behind(tmp_path: Path) -> None:
    """Its servers end with it, and it does so before it is killed."""
    async with running_store(tmp_path / "log") as store:
        family = [psutil.Process(store.pid), *psutil.Process(store.pid).children()]
        _server(store, _SENTINEL).suspend()
        told = asyncio.create_task(store.do("replace", print))
        await asyncio.sleep(0.1)
        told.cancel()

    assert len(family) == 6
    assert not any(_lives(process) for process in family)


async def test_server_that_has_ended_is_told_with_its_last_words(tmp_path: Path) -> None:
    """Whoever it was that killed it."""
    async with running_store(tmp_path / "log") as store:
        _server(store, _SENTINEL).terminate()
        with pytest.raises(ServiceDiedError, match=r"has ended with code(.|\n)*SIGTERM"):
            await store.do("replace", print)


def _server(store: RunningStore, which: int) -> psutil.Process:
    servers = psutil.Process(store.pid).children()
    return sorted(servers, key=lambda server: (server.create_time(), server.pid))[which]


def _is_up(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def test_store_ends_with_its_parent(tmp_path: Path) -> None:
    """However that ends."""
    command = [sys.executable, "-c", _PARENT, str(tmp_path / "log")]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        family = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
        parent.wait()

    assert len(family) == 6
    wait_until(lambda: not any(_lives(process) for process in family), "all have ended", within=10)


def _lives(process: psutil.Process) -> bool:
    # Where nobody collects orphans, they remain as zombies.
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
