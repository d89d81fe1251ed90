"""One limit for four processes, counted exactly: `python -m examples.rate_limit_fleet`."""
