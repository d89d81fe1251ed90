"""The demo's store for carts: five processes that do what they are told, and end with who started them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis
from examples.children import ROOT
from examples.shop.processes import ServiceDiedError
from examples.shop.store import running_store
from tests.support.valkey import client_for
from tests.support.waiting import await_until, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.faults]

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
    assert [line["note"] for line in seen] == ["killed", "refusing", "back", "in store"]
    assert seen[-1]["entries"] == ["ada/1"]


async def test_store_that_cannot_do_what_it_is_told_says_so(tmp_path: Path) -> None:
    """And ends, with all of its processes; its log holds the reason."""
    log = tmp_path / "log"
    async with running_store(log) as store:
        host, port = store.address.primary
        with pytest.raises(ServiceDiedError, match="has ended"):
            await store.do("explode", print)

        assert "explode" in log.read_text()
        with client_for(f"redis://{host}:{port}") as client:
            await await_until(lambda: not _is_up(client), "the primary is gone")


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
