"""The circuit breaker: `core` decides, `breaker` is what users hold, `pybreaker_bridge` keeps pybreaker's word."""
