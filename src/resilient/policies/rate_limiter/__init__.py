"""Rate limiter: how often, on one machine and across many."""
