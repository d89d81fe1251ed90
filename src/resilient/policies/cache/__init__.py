"""The cache: `core` decides on entries and loads, `store` bounds them, `desk` is where calls come first."""
