"""The demo's network: it passes everything on until it is cut, and later on where it stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from examples.shop.network import Network, way_in
from tests.support.waiting import await_until

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nup"
# Long enough for a loopback's answer to come, if it is to come at all.
_SILENCE = 0.1


class Target:
    """A server that answers 200 to whatever comes, and counts who connects."""

    def __init__(self) -> None:
        self.connections = 0
        self.gone = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while await reader.read(65_536):
            writer.write(ANSWER)
        self.gone += 1
        writer.close()


@pytest.fixture
def target() -> Target:
    """Somebody to talk to."""
    return Target()


@pytest.fixture
async def url(target: Target) -> AsyncIterator[str]:
    """Where they are."""
    async with target.open() as where:
        yield where


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """Who asks; as patient as can be."""
    async with httpx.AsyncClient(timeout=None, verify=False) as client:
        yield client


async def test_link_passes_on_what_is_said(url: str, http: httpx.AsyncClient, target: Target) -> None:
    """To and fro, over one connection for each that is made; and its end."""
    async with Network().links({"target": url}) as links:
        answers = [await http.get(links["target"]) for _ in range(3)]
        assert [answer.text for answer in answers] == ["up"] * 3
        assert target.connections == 1
        await http.aclose()
        await await_until(lambda: target.gone == 1, "the target hears of the end")


async def test_cut_link_says_nothing_at_all(url: str, http: httpx.AsyncClient, target: Target) -> None:
    """Neither to who is connected, nor to who connects; when it is whole, both get their answers."""
    network = Network()
    async with network.links({"target": url}) as links:
        await http.get(links["target"])
        network.cut()
        asking = [asyncio.create_task(http.get(links["target"])) for _ in range(3)]
        done, _ = await asyncio.wait(asking, timeout=_SILENCE)
        assert not done
        assert target.connections == 1

        network.heal()
        answers = await asyncio.gather(*asking)
        assert [answer.text for answer in answers] == ["up"] * 3


async def test_cut_network_keeps_even_an_end_to_itself(
    url: str, http: httpx.AsyncClient, target: Target
) -> None:
    """Who leaves during the cut is noticed after it."""
    network = Network()
    async with network.links({"target": url}) as links:
        await http.get(links["target"])
        network.cut()
        await http.aclose()
        await asyncio.sleep(_SILENCE)
        assert target.gone == 0

        network.heal()
        await await_until(lambda: target.gone == 1, "the target hears of it")


async def test_link_to_nobody_breaks(http: httpx.AsyncClient, target: Target) -> None:
    """As a connection does to a port where nobody listens."""
    async with AsyncExitStack() as stack:
        nobody = await stack.enter_async_context(target.open())
        await stack.aclose()
        async with Network().links({"target": nobody}) as links:
            with pytest.raises(httpx.TransportError):
                await http.get(links["target"])


async def test_network_ends_with_connections_that_wait(url: str, http: httpx.AsyncClient) -> None:
    """Nothing is left of them."""
    network = Network()
    async with network.links({"target": url}) as links:
        network.cut()
        asking = asyncio.create_task(http.get(links["target"]))
        await asyncio.wait([asking], timeout=_SILENCE)

    with pytest.raises(httpx.TransportError):
        await asking


async def test_way_in_answers_for_a_target_that_is_not_ready(url: str, http: httpx.AsyncClient) -> None:
    """On connections that there are, too; and lets in who comes when it is ready."""
    ready = [True]
    async with way_in(url, lambda: ready[0]) as entrance:
        statuses = []
        for ready[0] in (True, False, False, True):
            statuses.append((await http.get(entrance)).status_code)

    assert statuses == [200, 503, 503, 200]


@pytest.mark.parametrize(("is_ready", "status"), [(lambda: True, 502), (lambda: False, 503)])
async def test_way_in_answers_for_a_target_that_is_gone(
    http: httpx.AsyncClient, target: Target, is_ready: Callable[[], bool], status: int
) -> None:
    """As a balancer does."""
    async with AsyncExitStack() as stack:
        nobody = await stack.enter_async_context(target.open())
        await stack.aclose()
        async with way_in(nobody, is_ready) as entrance:
            assert (await http.get(entrance)).status_code == status
