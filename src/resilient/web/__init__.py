"""The door of a service: what the ASGI and the WSGI middleware share, and the two of them."""
