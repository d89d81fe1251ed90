"""Adaptive throttles: a dependency that accepts everything, and one that accepts nothing."""

from __future__ import annotations

from bench.subjects.model import Outcome, Work, family


def resilient(work: Work) -> Work:
    """Throttle with ours."""
    from resilient import AdaptiveThrottle

    return AdaptiveThrottle("bench")(work)


def resilient_unlucky(work: Work) -> Work:
    """Throttle with ours, each draw turning the call away that may be turned away at all."""
    from resilient import AdaptiveThrottle

    return AdaptiveThrottle("bench", random=lambda: 0.0)(work)


SUBJECTS = (
    *family("adaptive throttle", ("resilient", "resilient-py", resilient)),
    *family(
        "adaptive throttle, rejecting",
        ("resilient", "resilient-py", resilient_unlucky),
        outcome=Outcome.REJECTS,
    ),
    *family("async adaptive throttle", ("resilient", "resilient-py", resilient), awaited=True),
)
