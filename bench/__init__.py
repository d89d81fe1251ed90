"""Benchmarks of `resilient` beside its peers; see README.md in this folder."""
