"""What is measured: one small builder per library and job, listed as data.

A builder imports its library itself, so that a peer that is missing or broken becomes a row that says so
and never stops the others.
"""

from __future__ import annotations

from bench.subjects import (
    baselines,
    breakers,
    bulkheads,
    caches,
    limiters,
    middleware,
    pipelines,
    pools,
    retries,
    shared_limiters,
    throttles,
    timeouts,
)
from bench.subjects.model import Outcome, Subject, Work

__all__ = ["SUBJECTS", "Outcome", "Subject", "Work"]

SUBJECTS: tuple[Subject, ...] = (
    *baselines.SUBJECTS,
    *breakers.SUBJECTS,
    *retries.SUBJECTS,
    *caches.SUBJECTS,
    *timeouts.SUBJECTS,
    *bulkheads.SUBJECTS,
    *throttles.SUBJECTS,
    *pools.SUBJECTS,
    *pipelines.SUBJECTS,
    *limiters.SUBJECTS,
    *shared_limiters.SUBJECTS,
    *middleware.SUBJECTS,
)
