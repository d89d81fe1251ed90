"""What runs services as an orchestrator does: whoever ends is started again.

Who takes more memory than it may is killed, as in a container. Who fails its probes is ended, or gets no more
customers; they are those of a kubelet: every few seconds a request over a connection of its own, a second for
the answer, and three failures in a row that count.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    aclosing,
    asynccontextmanager,
    suppress,
)
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeAlias

import httpx

from examples.children import tell_to_stop, url_of
from examples.shop.network import Network, way_in
from examples.shop.processes import Hear, Shop, log_file, running_service

STARTED, UP, KILLED, ENDED = "started", "up", "killed", "ended"
MEMORY, PROBE = "memory", "probe"
LIVE, READY = "live", "ready"

MB = 2**20
_HOST = "127.0.0.1"
_PAGE = resource.getpagesize()
# Seconds. A model of 200 MB takes some 80 ms to load: that is not missed.
_LOOK_EVERY, _TELL_EVERY = 0.02, 0.1
_UP_EVERY, _UP_WITHIN = 0.05, 1.0
# What a service gets to end in peace; its web server takes a second of it for answers that are under way.
_GRACE = 3.0


@dataclass(frozen=True, slots=True)
class Probes:
    """How services are asked how they are.

    Attributes:
        start: The path that says whether a service has started; the other two are asked from then on.
        live: The path that says whether it had better be started again.
        ready: The path that says whether customers may be sent to it.
        period: Seconds from one probe to the next.
        timeout: Seconds that an answer may take.
        failures: How many in a row count.
    """

    start: str
    live: str
    ready: str
    period: float
    timeout: float = 1.0
    failures: int = 3


@dataclass(frozen=True, slots=True)
class Care:
    """What is done for services.

    Attributes:
        memory: How many bytes a service may take, by its name.
        probes: How they are asked how they are; None: they are not.
        back_off: Seconds between an end and the second start after it; each time twice as long. The first is
            at once.
    """

    memory: Mapping[str, int] = field(default_factory=dict)
    probes: Probes | None = None
    back_off: float = 0.0


Start: TypeAlias = Callable[[int], AbstractAsyncContextManager[Process]]
"""Returns a context in which the service runs, for the how-manieth time."""


class Keeper:
    """Keeps one service running.

    Attributes:
        ready: Whether customers may be sent to it.
    """

    def __init__(self, name: str, start: Start, care: Care, http: httpx.AsyncClient, hear: Hear) -> None:
        self.ready = care.probes is None
        self._name = name
        self._start = start
        self._care = care
        self._http = http
        self._hear = hear
        self._process: Process | None = None

    async def run(self) -> None:
        """Start the service again whenever it has ended, until cancelled."""
        for number in count(1):
            if number > 2:
                await asyncio.sleep(self._care.back_off * 2 ** (number - 3))
            async with self._start(number) as self._process:
                self._tell(STARTED, number=number)
                await self._watch(self._process)
            self.ready = self._care.probes is None
            self._tell(ENDED, code=self._process.returncode)

    def tell_to_stop(self) -> None:
        """Tell the service that it is not needed any more, without waiting for it."""
        if self._process is not None:
            tell_to_stop(self._process)

    async def _watch(self, process: Process) -> None:
        limit, probes = self._care.memory.get(self._name), self._care.probes
        async with asyncio.TaskGroup() as group:
            watching = [group.create_task(self._probe(process, probes))]
            if limit is not None:
                watching.append(group.create_task(self._limit(process, limit)))
            await process.wait()
            for watch in watching:
                watch.cancel()

    async def _limit(self, process: Process, limit: int) -> None:
        """Kill the process when it takes more memory than it may, and tell how much it takes."""
        for number in count():
            taken = resident(process.pid)
            if taken > limit:
                self._tell(KILLED, why=MEMORY, mb=taken / MB)
                with suppress(ProcessLookupError):
                    process.kill()
                return
            if taken and number % round(_TELL_EVERY / _LOOK_EVERY) == 0:
                self._tell(MEMORY, mb=taken / MB)
            await asyncio.sleep(_LOOK_EVERY)

    async def _probe(self, process: Process, probes: Probes | None) -> None:
        start = "/healthz" if probes is None else probes.start
        await self._until_up(start)
        self._tell(UP)
        if probes is not None:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._probe_life(process, probes))
                group.create_task(self._probe_readiness(probes))

    async def _until_up(self, path: str) -> None:
        while await self._asked(path, _UP_WITHIN) != "200":  # noqa: ASYNC110 - nothing says when
            await asyncio.sleep(_UP_EVERY)

    async def _probe_life(self, process: Process, probes: Probes) -> None:
        async with aclosing(self._failures(LIVE, probes.live, probes)) as failures:
            async for failed in failures:
                if failed == probes.failures:
                    break
        self._tell(KILLED, why=LIVE)
        with suppress(ProcessLookupError):  # it has ended by itself, just now
            process.terminate()
            await asyncio.sleep(_GRACE)
            process.kill()

    async def _probe_readiness(self, probes: Probes) -> None:
        async for failed in self._failures(READY, probes.ready, probes):
            self.ready = failed < probes.failures and (self.ready or not failed)

    async def _failures(self, kind: str, path: str, probes: Probes) -> AsyncGenerator[int, None]:
        """Probe again and again, and yield how many failures there were in a row, so far."""
        clock, failed = asyncio.get_running_loop().time, 0
        while True:
            asked = clock()
            answer = await self._asked(path, probes.timeout)
            took = clock() - asked
            failed = 0 if answer == "200" else failed + 1
            self._tell(PROBE, kind=kind, answer=answer, seconds=took)
            yield failed
            await asyncio.sleep(probes.period - took)

    async def _asked(self, path: str, timeout: float) -> str:
        try:
            async with asyncio.timeout(timeout):
                return str((await self._http.get(path)).status_code)
        except TimeoutError:
            return "timeout"
        except httpx.TransportError:
            return "broken"

    def _tell(self, what: str, **told: object) -> None:
        self._hear("orchestrator", {"note": what, "of": self._name, **told})


class OrchestratedShop(Shop):
    """The running services of a shop that somebody looks after."""

    def __init__(
        self,
        urls: dict[str, str],
        processes: dict[str, Process],
        logs: Path,
        keeping: Collection[asyncio.Task[None]],
    ) -> None:
        super().__init__(urls, processes, logs)
        self._keeping = keeping

    async def check(self) -> None:
        """Raise `ServiceDiedError` for a service that nobody starts again, and what kept somebody from it."""
        await super().check()
        for task in self._keeping:
            if task.done():
                task.result()


@asynccontextmanager
async def orchestrated_shop(
    logs: Path,
    *,
    protections: Collection[str],
    hear: Hear,
    environment: Mapping[str, str],
    services: Sequence[str],
    care: Care,
    network: Network | None = None,
) -> AsyncIterator[Shop]:
    """Run the services of a shop, all but the rates API of an orchestrator's, while the context is open.

    Args:
        logs: A directory for what the services print.
        protections: What is on of what protects the shop, see `service.PROTECTIONS`.
        hear: Is told what the services tell of themselves, and what is done to them.
        environment: Further variables for the services.
        services: Which ones.
        care: What is done for them.
        network: What is between them; None: nothing that could be cut.
    """
    async with AsyncExitStack() as stack:
        places = {name: stack.enter_context(_reserved()) for name in services}
        urls = {name: url_of(place) for name, place in places.items()}
        links = urls if network is None else await stack.enter_async_context(network.links(urls))
        variables = {**environment, "SHOP_URLS": json.dumps(links)}

        def start(name: str, number: int) -> AbstractAsyncContextManager[Process]:
            return running_service(
                name,
                _unheard(places[name]),
                protections=protections,
                log=log_file(logs, name if number == 1 else f"{name}-{number}"),
                hear=hear,
                environment=variables,
            )

        processes = {"rates": await stack.enter_async_context(start("rates", 1))}
        keepers = {}
        for name, url in urls.items():
            if name not in processes:
                http = await stack.enter_async_context(_prober(url))
                keepers[name] = Keeper(name, partial(start, name), care, http, hear)
        entrance = await stack.enter_async_context(
            way_in(urls["frontend"], lambda: keepers["frontend"].ready)
        )
        keeping = [asyncio.create_task(keeper.run()) for keeper in keepers.values()]
        shop = OrchestratedShop(urls, processes, logs, keeping)
        shop.entrance = entrance
        try:
            yield shop
        finally:
            # All are told before the first is waited for.
            for keeper in keepers.values():
                keeper.tell_to_stop()
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)


def resident(pid: int) -> int:
    """Return how many bytes of memory a process takes; 0 when it has ended."""
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE
    return 0


def _prober(url: str) -> httpx.AsyncClient:
    """Return what probes: it keeps no connection, as a kubelet keeps none."""
    # Time is limited by who asks. There is no TLS, whose certificates would take a while to read.
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=url, timeout=None, verify=False, limits=limits)


def _reserved() -> socket.socket:
    """Return a socket that keeps a free port for one service after the other; it does not listen itself."""
    return _bound((_HOST, 0))


def _unheard(place: socket.socket) -> socket.socket:
    """Return another socket at a reserved place; until a service listens on it, nobody is there."""
    return _bound(place.getsockname())


def _bound(address: tuple[str, int]) -> socket.socket:
    with ExitStack() as stack:
        place = stack.enter_context(socket.socket())
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(address)
        stack.pop_all()
        return place
