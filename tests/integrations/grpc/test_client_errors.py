"""What our refusals are to code that knows gRPC only, and what statuses are to policies."""

from __future__ import annotations

import copy
import pickle

import grpc
import grpc.aio
import pytest
from grpc import StatusCode

from resilient import CallTimeoutError, CircuitOpenError, DeadlineExceededError, RateLimitedError
from resilient.errors import PoolTimeoutError, RejectedError
from resilient.integrations.grpc.client import FAILURES, is_failure, is_transient, status_in
from resilient.integrations.grpc.client_errors import code_of, pushback_of, rpc_error
from resilient.integrations.grpc.client_replay import Replay


def failed(code: StatusCode, *trailing: tuple[str, str]) -> grpc.aio.AioRpcError:
    """An error as a server's answer makes it."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details="no")


class OwnError(RejectedError):
    """A refusal of somebody else's, with a constructor of its own."""

    def __init__(self, what: int, why: str) -> None:
        Exception.__init__(self, f"{what}: {why}")
        self.what = what


REFUSED = [
    CircuitOpenError("circuit", policy="b", retry_after=2.0, last_failure="x"),
    RateLimitedError("limit", policy="l", retry_after=0.5),
    DeadlineExceededError("late", policy="d"),
    PoolTimeoutError("pool", policy="p", size=3),
    CallTimeoutError("slow", policy="t", seconds=1.5),
    OwnError(7, "because"),
]


@pytest.mark.parametrize("error", REFUSED, ids=lambda error: type(error).__name__)
class TestBoth:
    """An error that is ours and gRPC's."""

    def test_is_both(self, error):
        """It is of its own class and of gRPC's, with all that the original has."""
        both = rpc_error(error)
        assert isinstance(both, type(error))
        assert isinstance(both, grpc.RpcError)
        assert isinstance(both, grpc.aio.AioRpcError)
        assert isinstance(both, grpc.Call)
        assert isinstance(both, grpc.Future)
        assert str(both) == str(error) == both.details()
        assert {**vars(both), **vars(error)} == vars(both)

    def test_is_made_once(self, error):
        """What is both already is left alone."""
        both = rpc_error(error)
        assert rpc_error(both) is both
        assert type(rpc_error(error)) is type(both)

    def test_is_a_call_that_has_ended(self, error):
        """Whoever asks it like a call is answered."""
        both = rpc_error(error)
        asked: list[object] = []
        both.add_done_callback(asked.append)
        assert asked == [both]
        assert both.done()
        assert not both.running()
        assert not both.is_active()
        assert not both.cancelled()
        assert not both.cancel()
        assert not both.add_callback(lambda: None)
        assert both.time_remaining() is None
        assert both.exception() is both
        for ask in (both.result, lambda: next(iter(both))):
            with pytest.raises(type(error)):
                ask()
        assert both.traceback() is not None
        assert type(error).__name__ in repr(both)

    @pytest.mark.parametrize("way", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
    def test_can_be_pickled(self, error, way):
        """It is the same on the other side."""
        error.add_note("a note")
        both = rpc_error(error)
        again = way(both)
        assert type(again) is type(both)
        assert str(again) == str(both)
        assert again.code() is both.code()
        assert tuple(again.trailing_metadata()) == tuple(both.trailing_metadata())
        assert again.__notes__ == both.__notes__
        assert again.__notes__ is not error.__notes__


def test_of_others_is_left_alone():
    """What is no refusal is returned as it is."""
    error = LookupError()
    assert rpc_error(error) is error


def test_class_that_will_not_be_mixed():
    """A refusal whose class cannot be mixed with gRPC's stays what it is."""

    class SealedError(RejectedError):
        def __init_subclass__(cls) -> None:
            raise TypeError("no")

    error = SealedError("no")
    assert type(rpc_error(error)) is SealedError
    assert str(rpc_error(error)) == "no"


@pytest.mark.parametrize("code", list(StatusCode))
def test_judging(code):
    """What is evidence, and what is worth another try."""
    error = failed(code)
    assert is_failure(error) is (code in FAILURES)
    assert is_transient(error) is (code is StatusCode.UNAVAILABLE)
    assert status_in(code)(error) is True


def test_judging_others():
    """Our refusals are no evidence, a call that took too long is; what has no status is neither."""

    class Broken(grpc.RpcError):
        def code(self):
            raise LookupError

        trailing_metadata = code

    assert not is_failure(rpc_error(CircuitOpenError("x")))
    assert is_failure(CallTimeoutError("x"))
    for error in (grpc.RpcError(), Broken(), LookupError(), grpc.FutureCancelledError()):
        assert code_of(error) is None
        assert pushback_of(error) is None
        assert not is_failure(error)
        assert not is_transient(error)


@pytest.mark.parametrize(
    ("text", "verdict"), [("1500", 1.5), ("0", 1e-6), ("-1", False), ("x", False), ("9" * 30, False)]
)
def test_pushback_is_the_verdict(text, verdict):
    """A rule answers with the wait that the server wants, or no."""
    assert is_transient(failed(StatusCode.UNAVAILABLE, ("grpc-retry-pushback-ms", text))) == verdict


@pytest.mark.parametrize("codes", [(), (14,), (StatusCode.OK, "x")])
def test_bad_codes(codes):
    """Codes are members of the enumeration, at least one."""
    with pytest.raises(TypeError, match=r"codes must be members of grpc\.StatusCode"):
        status_in(*codes)


def test_requests_taken_by_an_attempt_that_has_failed_are_kept():
    """What a thread takes for an attempt that is over is there for the next, and it takes no more."""
    source = iter(b"abc")
    replay = Replay(source)
    first = replay.again()
    assert next(first) == ord("a")
    second = replay.again()
    assert list(first) == []
    assert list(second) == list(b"abc")
    assert not replay.is_lost
