"""The circuit breaker.

`states` is its vocabulary, `machine` is the state and how it changes, `core` treats the calls, `probes` are
those while half-open, `breaker` is what users hold, and `pybreaker_bridge` keeps what pybreaker promises.
"""
