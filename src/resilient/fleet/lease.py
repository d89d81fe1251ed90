"""Leases."""

from __future__ import annotations

from typing import Any


class LeaseDesk:
    def __init__(self, *args: Any) -> None:
        raise NotImplementedError
