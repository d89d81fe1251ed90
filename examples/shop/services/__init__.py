"""The shop's services: each module has `routes(calls)`, what it serves given what it may call."""
