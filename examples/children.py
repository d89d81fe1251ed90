"""Child processes that end when their parent leaves them, however it does; both ends of that.

A child's standard input is a pipe, of which the parent holds the other end. The parent closes it to tell the
child to stop. If the parent dies, the kernel closes it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import resource
import socket
import sys
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_SHUTDOWN = 5.0
_MANY = 10_000
# Below those that systems take for outgoing connections: a port from there could go, while its server is
# away, to a client's socket, even to one that connects to itself.
_PORTS = range(15_000, 32_000)


@asynccontextmanager
async def spawned(module: str, arguments: Sequence[str], log: Path, **options: Any) -> AsyncIterator[Process]:
    """Run a module as a child while the context is open; its standard output is a pipe as well.

    Args:
        module: What `python -m` is given.
        arguments: What the module is given.
        log: The file for its standard error.
        options: What `asyncio.create_subprocess_exec` is given beside.
    """
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *arguments),
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
        await stop(process)


@asynccontextmanager
async def heard(process: Process, hear: Callable[[bytes], object]) -> AsyncIterator[None]:
    """Tell *hear* every line that a child prints while the context is open; it is stopped at the end."""
    listening = asyncio.create_task(_listen_to(process, hear))
    try:
        yield
    finally:
        await stop(process)
        await listening


async def _listen_to(process: Process, hear: Callable[[bytes], object]) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        if line.endswith(b"\n"):  # a child that is killed may leave half a line
            hear(line)


async def stop(process: Process) -> None:
    """Tell a child to stop, and kill it if it does not do so soon."""
    tell_to_stop(process)
    try:
        async with asyncio.timeout(_SHUTDOWN):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def tell_to_stop(process: Process) -> None:
    """Tell a child to stop, without waiting for it."""
    assert process.stdin is not None
    process.stdin.close()


def listen() -> socket.socket:
    """Return a socket that listens on a free port, for a child to serve."""
    return socket.create_server(("127.0.0.1", 0), backlog=512)


def free_ports(count: int) -> list[int]:
    """Return ports that no outgoing connection is given while their server is away."""
    return list(itertools.islice(filter(_is_free, random.sample(_PORTS, len(_PORTS))), count))


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def url_of(listener: socket.socket) -> str:
    """Return where a socket listens."""
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def when_parent_leaves(then: Callable[[], object]) -> None:
    """In a child: call *then*, from a thread, once the parent has let go of standard input."""
    threading.Thread(target=_wait, args=(then,), daemon=True).start()


def allow_many_connections() -> None:
    """In a child: raise the limit of open files, each connection being one, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MANY if hard == resource.RLIM_INFINITY else min(_MANY, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _wait(then: Callable[[], object]) -> None:
    # os.read and not sys.stdin: a daemon thread inside a buffered reader upsets the interpreter's exit.
    while os.read(0, 1024):
        pass
    then()
