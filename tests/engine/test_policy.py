"""What every policy is: one shared object, which is not copied, not pickled and not half-made."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from resilient import Cache, CircuitBreaker, Fallback, Pipeline, Retry, Timeout, deadline
from resilient.engine.policy import Policy

MAKERS: list[Callable[[], Policy]] = [
    lambda: Cache("one", ttl=60),
    lambda: CircuitBreaker("one"),
    lambda: Fallback("answer", name="one"),
    lambda: Pipeline(Timeout(5), name="one"),
    lambda: Retry(on=OSError, name="one"),
    lambda: Timeout(5, name="one"),
    lambda: deadline(5, name="one"),
]


@dataclasses.dataclass
class Settings:
    """Settings of a client, as users have them."""

    guard: Policy
    address: str = "api"


@pytest.mark.parametrize("make", MAKERS)
def test_copy_of_a_policy_is_the_policy(make: Callable[[], Policy]):
    """Settings that hold one can be copied; functions are under the same object as before."""
    policy = make()
    assert copy.copy(policy) is policy
    assert copy.deepcopy([policy])[0] is policy
    assert dataclasses.asdict(Settings(policy)) == {"guard": policy, "address": "api"}


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_policy_cannot_be_pickled(make: Callable[[], Policy], protocol: int):
    """The message says what to do instead."""
    policy = make()
    cure = rf"{policy.kind} 'one' cannot be pickled: .* at module level and import"
    with pytest.raises(TypeError, match=cure):
        pickle.dumps(policy, protocol)


def test_policy_that_is_not_finished_cannot_be_made():
    """A subclass has to say how it wraps, what it is called and what it counts."""

    class Half(Policy):
        kind = "Half"

        def wrap(self, fn: Any, _shape: Any) -> Any:
            return fn

    with pytest.raises(TypeError, match="abstract"):
        Half()
