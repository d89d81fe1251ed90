"""Pipeline: several policies as one, in an order that works."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..engine import params
from ..engine.order import check_order
from ..engine.policy import Policy, policies_of
from ..engine.shape import Shape
from ..events import Announcer, Listener

if TYPE_CHECKING:
    from .lint import Finding

__all__ = ["Pipeline", "PipelineStats"]


@dataclass(frozen=True, slots=True)
class PipelineStats:
    """The statistics of each policy, outermost first, as `(kind, name, stats)`."""

    policies: tuple[tuple[str, str, object], ...]


class Pipeline(Policy):
    """Put several policies on a call at once, outermost first.

    `Pipeline(retry, breaker)` is `retry(breaker(fn))`. It is a policy itself, and so may stand in another
    pipeline. The order that works is

    `Fallback > Cache > deadline > Retry > CircuitBreaker > AdaptiveThrottle > RateLimiter > Bulkhead >
    Timeout > call`

    and orders that are known to go wrong are refused with the reason, here and when decorators are stacked
    by hand.

    Args:
        *policies: at least one, outermost first.
        name: in its representation.
        order: "checked" refuses known mistakes; "as-given" takes the order as it is, of its own policies
            and of what it decorates, also where it stands in a checked pipeline.

    Raises:
        TypeError: an argument is no policy.
        ValueError: there are no policies, or *order* is neither of the two.
        PipelineOrderError: the order is known to go wrong.

    Concurrency: as that of its policies; composed once, when decorating.

    Source: the standard pipelines of Polly v8 and resilience4j.
    """

    kind: ClassVar[str] = "Pipeline"

    def __init__(
        self, *policies: Policy, name: str | None = None, order: Literal["checked", "as-given"] = "checked"
    ) -> None:
        if not policies:
            msg = "policies must hold at least one policy, got none"
            raise ValueError(msg)
        for policy in policies:
            if not isinstance(policy, Policy):
                params.refuse(TypeError, "policies", "must be policies", policy)
        if order not in ("checked", "as-given"):
            params.refuse(ValueError, "order", "must be 'checked' or 'as-given'", order)
        self._name = "pipeline" if name is None else params.named("name", name)
        self.checks_order = order == "checked"
        self.policies = policies
        self.announcer = Announcer()
        if self.checks_order:
            for position, policy in enumerate(policies):
                check_order(policy.layers, _layers(policies[position + 1 :]), f"pipeline {self._name!r}")

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return self._name

    @property
    def layers(self) -> tuple[Policy, ...]:
        """All policies, nested pipelines opened, outermost first."""
        return _layers(self.policies)

    def wrap(self, fn: Callable[..., Any], shape: Shape) -> Callable[..., Any]:
        """Return *fn*, which has *shape*, under all the policies."""
        return functools.reduce(lambda inner, policy: policy.wrap(inner, shape), reversed(self.policies), fn)

    def lint(self, fn: Callable[..., Any] | None = None) -> tuple[Finding, ...]:
        """Find numbers that cannot work together.

        Args:
            fn: a function this pipeline goes on; policies it is under already are looked at too.

        Returns:
            What was found, in no order of importance; empty if all is well.
        """
        from .lint import lint  # noqa: PLC0415 - it knows every policy, and is for start-up and tests

        return lint((*self.layers, *(policies_of(fn) if fn is not None else ())))

    def add_listener(self, listener: Listener) -> None:
        """Call *listener* with every event of every policy in this pipeline.

        Args:
            listener: called with one `Event`; must not block.

        Raises:
            TypeError: *listener* cannot be called.
        """
        for layer in self.layers:
            layer.announcer.listeners.add(listener)

    def remove_listener(self, listener: Listener) -> None:
        """Undo one `add_listener`.

        Args:
            listener: the listener to remove.

        Raises:
            ValueError: *listener* is not registered with all of the policies.
        """
        for layer in self.layers:
            layer.announcer.listeners.remove(listener)

    def stats(self) -> PipelineStats:
        """Return the statistics of each policy."""
        return PipelineStats(tuple((layer.kind, layer.name, layer.stats()) for layer in self.layers))

    def __repr__(self) -> str:
        return f"<Pipeline {self._name!r}: {' > '.join(map(repr, self.layers))}>"


def _layers(policies: Sequence[Policy]) -> tuple[Policy, ...]:
    return tuple(layer for policy in policies for layer in policy.layers)
