"""What stands in header fields and documents, whatever names, keys and reasons there are."""

from __future__ import annotations

import functools
import json
import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.web.support import WORLDS, Asgi, Ask, Reply, World, hello

from resilient import RateLimiter, deadline
from resilient.asgi import Maintenance, deadline_headers
from resilient.errors import CircuitOpenError, MaintenanceError, RateLimitedError
from resilient.testing import FakeClock
from resilient.web.headers import RateFields, pause, string_item, whole_seconds

EVIL = [
    "a\r\nSet-Cookie: x=1",
    "a\nb",
    "\x00",
    'a"b',
    "a\\b",
    "\u00fc",
    "\u2028",
    "\U0001f600",
    "\x7f",
    "a;r=9,b",
]
names = st.one_of(st.sampled_from(EVIL), st.text(min_size=1, max_size=30)).filter(
    lambda name: bool(name.strip())
)


def is_clean(reply: Reply) -> bool:
    """Tell whether every field is one line of printable ASCII."""
    return all(" " <= c <= "~" for field in reply.fields for text in field for c in text)


class TestInjection:
    @given(name=names, key=st.text(max_size=50), world=st.sampled_from(WORLDS))
    def test_names_and_keys_end_no_line(self, name: str, key: str, world: World) -> None:
        """No byte below 0x20 or beyond ASCII in any field, admitted or denied, in all dialects."""
        app = world.middleware(
            rate_limit=RateLimiter("1/hour", name=name), key=lambda _: key, headers="both", exempt=()
        )

        replies = [world.get(app) for _ in range(2)]

        assert [reply.status for reply in replies] == [200, 429]
        assert all(is_clean(reply) for reply in replies)
        assert all(len([n for n, _ in reply.fields if n.lower() == "ratelimit"]) == 1 for reply in replies)

    @given(text=st.one_of(st.sampled_from(EVIL), st.text()), world=st.sampled_from(WORLDS))
    def test_errors_end_no_line(self, text: str, world: World) -> None:
        """Neither the message of an error nor the name of its policy is told."""
        decision = RateLimiter("1/hour", name=text if text.strip() else "x").peek()
        for error in (
            CircuitOpenError(text, policy=text, retry_after=1),
            MaintenanceError(text, policy=text),
            RateLimitedError(text, policy=text, decision=decision),
        ):

            def refuse(error: Exception = error) -> Any:
                raise error

            reply = world.get(world.middleware(refuse))

            assert is_clean(reply)
            assert reply.body.isascii()
            json.loads(reply.body)

    @given(reason=names, name=names)
    def test_reasons_of_maintenance_stay_inside(self, reason: str, name: str) -> None:
        """Neither reason nor name stands in the answer."""
        maintenance = Maintenance(name=name)
        maintenance.on(reason=reason)

        reply = Asgi().get(Asgi().middleware(maintenance=maintenance))

        assert is_clean(reply)
        assert json.loads(reply.body)["detail"] == "The service is closed for maintenance."

    @given(
        path=st.text(max_size=30),
        headers=st.dictionaries(
            st.sampled_from(
                ["x-forwarded-for", "forwarded", "grpc-timeout", "x-request-timeout-ms", "accept"]
            ),
            st.text(alphabet=st.characters(max_codepoint=255), max_size=30),
        ),
        peer=st.one_of(st.none(), st.text(max_size=20)),
    )
    def test_no_request_makes_it_fail(self, path: str, headers: dict[str, str], peer: str | None) -> None:
        """What comes from outside never raises, and is never repeated."""
        maintenance = Maintenance("<p>closed</p>", exempt=("/open/*",), allow=("10.0.0.0/8",))
        maintenance.on()
        app = Asgi().middleware(
            maintenance=maintenance,
            rate_limit={"/open/*": "5/hour"},
            trusted=("10.0.0.0/8", "unix"),
            deadline=60,
        )
        reply = Asgi().send(app, Ask(path, headers=headers, peer=peer))
        assert is_clean(reply)
        assert reply.status in {200, 503, 504}


class TestValues:
    @pytest.mark.parametrize(
        ("seconds", "told"),
        [
            (0.0, 0),
            (-1.0, 0),
            (1e-9, 1),
            (0.2, 1),
            (1.0, 1),
            (1.000001, 2),
            (60.00000000000001, 60),
            (59.5, 60),
            (None, None),
            (math.inf, None),
            (-math.inf, 0),
            (math.nan, None),
            (1e300, None),
            ("5", None),
            (timedelta(seconds=5), None),
        ],
    )
    def test_seconds_are_whole_and_never_early(self, seconds: Any, told: int | None) -> None:
        """Rounded up; what never comes, and what is no number, is not told."""
        assert whole_seconds(seconds) == told

    @given(st.floats(min_value=0, max_value=1e9))
    def test_pause_is_never_early_and_at_most_half_as_long_again(self, seconds: float) -> None:
        """Whatever the dice say; and at most a minute more, however long it is."""
        told = pause(seconds)
        least = whole_seconds(seconds)

        if least is None:
            assert told is None
        else:
            assert told is not None
            assert least <= told <= least + min(max(2, least // 2), 60)

    @pytest.mark.parametrize("seconds", [None, "5", timedelta(seconds=5)])
    def test_pause_that_nobody_knows_is_short(self, seconds: Any) -> None:
        """Nobody hammers, and nobody waits for long."""
        assert 1 <= (pause(seconds) or 0) <= 3

    @pytest.mark.parametrize(
        ("name", "item"),
        [
            ("api", '"api"'),
            ('a"b', '"a\\"b"'),
            ("a\\b", '"a\\\\b"'),
            ("a\r\nb", '"a??b"'),
            ("\u00fc", '"?"'),
            ("", '""'),
        ],
    )
    def test_names_are_strings_of_structured_fields(self, name: str, item: str) -> None:
        """RFC 9651: quotes and backslashes escaped, ASCII only."""
        assert string_item(name) == item

    def test_several_quotas_stand_in_the_policy_and_the_tightest_in_the_limit(self) -> None:
        """As the draft has it: the policy is a list, the limit tells what binds."""
        limiter = RateLimiter(["2/second", "3/minute"], clock=FakeClock())
        fields = RateFields(limiter.quotas, "ietf")

        told = [dict(fields.of(limiter.hit())) for _ in range(3)]

        assert {each["RateLimit-Policy"] for each in told} == {'"2/second";q=2;w=1,"3/minute";q=3;w=60'}
        assert told[2]["RateLimit"] == '"2/second";r=0;t=1'

    def test_cost_that_never_fits_has_no_time(self) -> None:
        """More than there ever is: not now and not later."""
        limiter = RateLimiter("2/minute", clock=FakeClock())

        fields = dict(RateFields(limiter.quotas, "both").of(limiter.hit(cost=3)))

        assert fields["RateLimit"] == '"2/minute";r=0'
        assert "X-RateLimit-Reset" not in fields

    def test_remaining_and_reset_follow_the_bucket(self) -> None:
        """A bucket that is larger than its rate tells its own size."""
        limiter = RateLimiter("60/minute", burst=120, clock=FakeClock())

        fields = dict(RateFields(limiter.quotas, "both").of(limiter.hit()))

        assert fields["RateLimit"] == '"60/minute";r=119;t=1'
        assert fields["X-RateLimit-Limit"] == "120"


class TestDeadlineHeaders:
    def test_without_a_deadline_there_is_none(self) -> None:
        """Nothing to pass on."""
        assert deadline_headers() == {}

    @pytest.mark.parametrize(
        ("header", "told"),
        [
            ("x-request-timeout-ms", "1999"),
            ("x-envoy-expected-rq-timeout-ms", "1999"),
            ("grpc-timeout", "1999m"),
        ],
    )
    def test_what_is_left_is_rounded_down(self, header: str, told: str) -> None:
        """Nobody is promised more time than there is."""
        clock = FakeClock()
        with deadline(2.5, clock=clock):
            clock.advance(0.5001)
            assert deadline_headers(header) == {header: told}

    def test_deadline_that_has_passed_leaves_nothing(self) -> None:
        """Zero, which the service behind refuses at once."""
        clock = FakeClock()
        with deadline(1, clock=clock):
            clock.advance(5)
            assert deadline_headers() == {"x-request-timeout-ms": "0"}

    def test_grpc_has_eight_digits(self) -> None:
        """A longer deadline is as good as the longest."""
        with deadline(10**8, clock=FakeClock()):
            assert deadline_headers("grpc-timeout") == {"grpc-timeout": "99999999m"}

    def test_unknown_header_is_refused(self) -> None:
        """Three are understood at the other end."""
        with pytest.raises(ValueError, match="header must be one of 'grpc-timeout'"):
            deadline_headers("x-timeout")

    @pytest.mark.parametrize("world", WORLDS, ids=repr)
    def test_next_service_has_what_is_left(self, world: World) -> None:
        """From one door to the next: each has a little less time."""
        seen: list[dict[str, str]] = []
        behind = functools.partial(world.middleware, trusted="192.0.2.1")

        def inner() -> tuple[int, bytes]:
            seen.append(deadline_headers())
            return hello()

        def outer() -> tuple[int, bytes]:
            seen.append(deadline_headers())
            # Another process, as it were: the deadline travels in the header alone.
            reply = _elsewhere(lambda: world.get(behind(inner), headers=seen[-1]))
            return reply.status, reply.body

        world.get(behind(outer), headers={"grpc-timeout": "5S"})

        times = [int(headers["x-request-timeout-ms"]) for headers in seen]
        assert 5000 >= times[0] >= times[1] > 3000


def _elsewhere(call: Any) -> Any:
    import threading

    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]
