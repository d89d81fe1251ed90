"""A small shop of real processes, whose external rates API turns slow (incident A4)."""
