"""Closing a service by hand, for a while, for some."""

from __future__ import annotations

import json
import threading
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from tests.web.support import WORLDS, World

from resilient.asgi import Maintenance, Request
from resilient.events import MaintenanceSwitched
from resilient.testing import FakeClock, capture_events
from resilient.web.maintenance import MaintenanceStats

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.fixture(params=WORLDS, ids=repr)
def world(request: pytest.FixtureRequest) -> World:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def closed(*args: Any, for_: float | None = None, **options: Any) -> Maintenance:
    maintenance = Maintenance(*args, **options)
    maintenance.on(for_)
    return maintenance


class TestAnswers:
    def test_service_is_open_until_it_is_closed_and_after_it_is_opened(self, world: World) -> None:
        """At run time, and at once."""
        maintenance = Maintenance()
        app = world.middleware(maintenance=maintenance)

        statuses = [world.get(app).status]
        maintenance.on()
        statuses.append(world.get(app).status)
        maintenance.off()
        statuses.append(world.get(app).status)

        assert statuses == [200, 503, 200]

    def test_programs_get_a_problem_document(self, world: World) -> None:
        """With a time to come back, of which clients are spread."""
        reply = world.get(world.middleware(maintenance=closed("<h1>Back soon</h1>", retry_after=60)))

        assert reply.status == 503
        assert reply["Content-Type"] == "application/problem+json"
        assert json.loads(reply.body)["type"].endswith("#temporary-reduced-capacity")
        assert 60 <= int(reply["Retry-After"] or 0) <= 90
        assert reply["Vary"] == "Accept"

    def test_browsers_get_the_page(self, world: World) -> None:
        """With the same status and the same time."""
        app = world.middleware(maintenance=closed("<h1>Zur\u00fcck um 5</h1>", retry_after=60))

        reply = world.get(app, headers={"accept": BROWSER})

        assert reply.status == 503
        assert reply["Content-Type"] == "text/html; charset=utf-8"
        assert reply.body.decode() == "<h1>Zur\u00fcck um 5</h1>"
        assert reply["Content-Length"] == str(len(reply.body))
        assert 60 <= int(reply["Retry-After"] or 0) <= 90

    @pytest.mark.parametrize(
        ("accept", "kind"),
        [
            (BROWSER, "text/html"),
            ("text/html", "text/html"),
            ("TEXT/HTML; charset=utf-8; q=0.5", "text/html"),
            ("application/xhtml+xml", "text/html"),
            ("application/json, text/html", "text/html"),
            ("application/json, text/html;q=0.9", "application/problem+json"),
            ("text/html;q=0", "application/problem+json"),
            ("*/*", "application/problem+json"),
            ("application/json", "application/problem+json"),
            ("", "application/problem+json"),
            ("text/html;q=nonsense", "text/html"),
            (",;=/" * 1000, "application/problem+json"),
        ],
    )
    def test_form_is_what_the_client_accepts(self, world: World, accept: str, kind: str) -> None:
        """HTML for those who name it, and prefer it to JSON."""
        reply = world.get(world.middleware(maintenance=closed("<p>")), headers={"accept": accept})

        assert (reply["Content-Type"] or "").startswith(kind)

    def test_page_may_be_bytes_or_a_file(self, world: World, tmp_path: Path) -> None:
        """A file is read when the switch is made: it need not be there later."""
        file = tmp_path / "page.html"
        file.write_bytes(b"<p>from a file")
        pages = [b"<p>bytes", file]
        switches = [closed(page) for page in pages]
        file.unlink()

        bodies = [
            world.get(world.middleware(maintenance=one), headers={"accept": BROWSER}).body for one in switches
        ]

        assert bodies == [b"<p>bytes", b"<p>from a file"]

    def test_head_gets_no_body(self, world: World) -> None:
        """But its length."""
        reply = world.get(
            world.middleware(maintenance=closed("<p>")), method="HEAD", headers={"accept": BROWSER}
        )

        assert (reply.body, reply["Content-Length"]) == (b"", "3")

    def test_time_left_is_what_clients_are_told(self, world: World, clock: FakeClock) -> None:
        """Where it is known for how long, nobody comes earlier, and few much later."""
        app = world.middleware(maintenance=closed(clock=clock, for_=100))
        clock.advance(40)

        told = {int(world.get(app)["Retry-After"] or 0) for _ in range(50)}

        assert 60 <= min(told) <= max(told) <= 90
        assert len(told) > 1


class TestWho:
    def test_exempt_paths_stay_open(self, world: World) -> None:
        """As patterns; the middleware's own exempt paths do anyway."""
        app = world.middleware(maintenance=closed(exempt=("/login", "/static/*")))

        statuses = {path: world.get(app, path).status for path in ("/login", "/static/a.css", "/livez", "/")}

        assert statuses == {"/login": 200, "/static/a.css": 200, "/livez": 200, "/": 503}

    def test_networks_are_let_in(self, world: World) -> None:
        """By the client's address."""
        app = world.middleware(maintenance=closed(allow=("192.0.2.0/28", "2001:db8::/32")))

        statuses = [
            world.get(app, peer=peer).status for peer in ("192.0.2.1", "192.0.2.99", "2001:db8::5", None)
        ]

        assert statuses == [200, 503, 200, 503]

    def test_nobody_forges_an_address_that_is_let_in(self, world: World) -> None:
        """Not from outside, and not through the proxy: what it has not written itself is not believed."""
        app = world.middleware(maintenance=closed(allow=["10.0.0.0/8", "192.0.2.5"]), trusted="10.0.0.1")
        forged = [
            ("198.51.100.1", {"x-forwarded-for": "192.0.2.5"}),
            ("10.0.0.1", {"x-forwarded-for": "192.0.2.5, 198.51.100.1"}),
            ("10.0.0.1", {"x-forwarded-for": "198.51.100.1", "forwarded": "for=192.0.2.5"}),
            ("10.0.0.1", {"x-forwarded-for": "198.51.100.1", "forwarded": "nonsense"}),
            ("10.0.0.1", {"x-forwarded-for": "192.0.2.5, nonsense"}),
        ]

        assert [world.get(app, peer=peer, headers=headers).status for peer, headers in forged] == [503] * 5
        honest = world.get(app, peer="10.0.0.1", headers={"x-forwarded-for": "192.0.2.5"})
        assert honest.status == 200

    def test_networks_may_be_objects(self, world: World) -> None:
        """Of the standard library, beside text."""
        app = world.middleware(
            maintenance=closed(allow=[ip_network("192.0.2.0/28"), ip_address("192.0.2.99")])
        )

        statuses = [world.get(app, peer=peer).status for peer in ("192.0.2.1", "192.0.2.99", "192.0.2.98")]

        assert statuses == [200, 200, 503]

    def test_predicates_let_in(self, world: World) -> None:
        """Whatever a request tells."""

        def staff(request: Request) -> bool:
            return request.header("x-staff") == "yes" and request.method == "GET"

        app = world.middleware(maintenance=closed(allow=("192.0.2.9", staff)))

        assert world.get(app, headers={"x-staff": "yes"}).status == 200
        assert world.get(app, headers={"x-staff": "no"}).status == 503

    def test_refused_request_costs_its_client_nothing(self, world: World) -> None:
        """Maintenance comes before limits and gates."""
        maintenance = closed()
        app = world.middleware(maintenance=maintenance, rate_limit="1/hour")
        for _ in range(5):
            assert world.get(app).status == 503
        assert maintenance.stats() == MaintenanceStats(refused=5, on=True)

        maintenance.off()

        assert world.get(app).status == 200
        assert maintenance.stats() == MaintenanceStats(refused=5, on=False)


class TestSwitch:
    def test_it_opens_by_itself(self, clock: FakeClock) -> None:
        """When its time is up, to the second, and with an event."""
        maintenance = Maintenance(name="shop", clock=clock)
        with capture_events() as told:
            maintenance.on(30, "upgrade")
            clock.advance(29.9)
            assert maintenance.is_on
            clock.advance(0.1)
            assert not maintenance.is_on

        assert told == [
            MaintenanceSwitched("shop", True, 30.0, "upgrade"),
            MaintenanceSwitched("shop", False, None, "its time is up"),
        ]

    def test_closing_again_changes_the_end(self, clock: FakeClock) -> None:
        """Longer, shorter, or without one."""
        maintenance = Maintenance(clock=clock)
        maintenance.on(10)
        maintenance.on()
        clock.advance(1e6)
        assert maintenance.is_on
        maintenance.on(5)
        clock.advance(5)
        assert not maintenance.is_on

    def test_opening_is_told_once(self, clock: FakeClock) -> None:
        """Nothing is told where nothing changes, and an end that has passed is told as such."""
        maintenance = Maintenance(clock=clock)
        heard: list[Any] = []
        maintenance.add_listener(heard.append)
        maintenance.off()
        maintenance.on(5)
        clock.advance(5)
        maintenance.off()
        maintenance.off()
        maintenance.remove_listener(heard.append)
        maintenance.on()

        assert [(event.on, event.reason) for event in heard] == [(True, None), (False, "its time is up")]

    def test_many_threads_find_its_end_at_once(self, clock: FakeClock) -> None:
        """It is told of once."""
        maintenance = Maintenance(clock=clock)
        maintenance.on(5)
        clock.advance(5)
        barrier, heard = threading.Barrier(8), []
        maintenance.add_listener(heard.append)

        def ask() -> None:
            barrier.wait()
            assert not maintenance.is_on

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(heard) == 1

    def test_end_that_is_found_late_does_not_open_what_was_closed_anew(self, clock: FakeClock) -> None:
        """A thread that saw the old end acts on the old closing only."""
        maintenance = Maintenance(clock=clock)
        maintenance.on(5)
        old = maintenance._closed
        assert old is not None
        clock.advance(5)
        maintenance.on(100)

        maintenance._open(old, "its time is up")

        assert maintenance.is_on

    def test_listener_may_switch(self) -> None:
        """Events are told outside the lock."""
        maintenance = Maintenance()
        maintenance.add_listener(lambda _event: maintenance.off())

        maintenance.on()

        assert not maintenance.is_on

    def test_repr_tells_its_state(self, clock: FakeClock) -> None:
        """For logs and shells."""
        maintenance = Maintenance(clock=clock)
        texts = [repr(maintenance)]
        maintenance.on()
        texts.append(repr(maintenance))
        maintenance.on(90)
        clock.advance(30)
        texts.append(repr(maintenance))

        assert texts == [
            "<Maintenance 'maintenance' off>",
            "<Maintenance 'maintenance' on>",
            "<Maintenance 'maintenance' on, 60 s left>",
        ]
        assert maintenance.name == "maintenance"

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: Maintenance(5), TypeError, "page must be HTML as text or bytes, a Path, or None, got 5"),  # type: ignore[arg-type]
            (lambda: Maintenance(Path("/nowhere/page")), OSError, "No such file"),
            (lambda: Maintenance(retry_after=-1), ValueError, "retry_after must be at least 0"),
            (lambda: Maintenance(exempt=("login",)), ValueError, "exempt must name paths like"),
            (lambda: Maintenance(exempt="/login"), TypeError, "exempt must be several paths, not one text"),
            (lambda: Maintenance(allow=("10.0.0.0/40",)), ValueError, "allow must name networks like"),
            (lambda: Maintenance(exempt=None), TypeError, "exempt must be several paths, got None"),  # type: ignore[arg-type]
            (
                lambda: Maintenance(allow="10.0.0.0/8"),
                TypeError,
                "allow must be several, such as .*, not one",
            ),
            (lambda: Maintenance(allow=ip_network("10.0.0.0/8")), TypeError, "allow must be several"),
            (lambda: Maintenance(allow=ip_address("10.0.0.1")), TypeError, "allow must be several"),  # type: ignore[arg-type]
            (lambda: Maintenance(allow=None), TypeError, "allow must be several, .*, got None"),  # type: ignore[arg-type]
            (
                lambda: Maintenance("maintenance.html"),
                ValueError,
                "page must be HTML; give the file .* as a Path",
            ),
            (lambda: Maintenance(name=""), ValueError, "name must not be empty"),
            (lambda: Maintenance(clock=5), TypeError, "clock must be callable"),  # type: ignore[arg-type]
            (lambda: Maintenance().on(0), ValueError, "for_ must be greater than 0"),
            (lambda: Maintenance().on(reason=5), TypeError, "reason must be text"),  # type: ignore[arg-type]
        ],
    )
    def test_bad_arguments_are_refused_by_name(self, make: Any, error: type[Exception], message: str) -> None:
        """The message tells parameter, rule and value."""
        with pytest.raises(error, match=message):
            make()
