"""The cache: `core` decides about entries and loads, `store` bounds them, `cache` is what users hold."""
