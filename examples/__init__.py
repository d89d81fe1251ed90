"""Runnable examples: each shows an incident happening, and not happening with `resilient`."""
