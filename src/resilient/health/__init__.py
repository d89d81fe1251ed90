"""Health that tells the truth: checks, what policies have seen, and who asks."""

from ..engine.finding import Finding, Status, Witness
from .health import Health
from .report import Report, Result

__all__ = ["Finding", "Health", "Report", "Result", "Status", "Witness"]
