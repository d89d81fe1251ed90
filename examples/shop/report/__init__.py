"""The demo's report: one HTML page that needs nothing but itself, and the figures as JSON beside it."""
