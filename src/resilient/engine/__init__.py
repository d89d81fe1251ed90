"""What policies share; knows no framework and no policy."""
