"""The same small orders service on FastAPI, Flask and Django."""
