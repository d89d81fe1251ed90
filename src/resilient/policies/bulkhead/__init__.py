"""Bulkheads: so many calls at a time, and no more; fixed, or as many as the dependency can serve."""

from .aimd import AIMD
from .bulkhead import Bulkhead, BulkheadStats
from .gradient import Gradient
from .pressure import Pressure
from .vegas import Vegas

__all__ = ["AIMD", "Bulkhead", "BulkheadStats", "Gradient", "Pressure", "Vegas"]
