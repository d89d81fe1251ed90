"""Tests; a package, so that no other distribution's `tests` can take its place on the import path."""
