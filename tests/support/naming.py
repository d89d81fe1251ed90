"""Names for the cases of a test."""

from __future__ import annotations

import re

ADDRESS = re.compile(r" at 0x[0-9a-f]+| id='\d+'")


def named(value: object) -> str:
    """Return *value* as text that is the same in every process: without its address.

    For `ids=`. Several processes share the tests by their names, and `--last-failed` finds them by these.
    """
    return ADDRESS.sub("", str(value))
