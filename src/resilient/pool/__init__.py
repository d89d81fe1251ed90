"""Connections that are lent, and come back."""
