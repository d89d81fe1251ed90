"""The circuit breaker.

`states` is its vocabulary, `core` decides, `breaker` is what users hold, and `pybreaker_bridge` keeps what
pybreaker promises.
"""
