"""Rigs the tests share: real servers started from wheels, and a proxy that breaks connections on demand."""
