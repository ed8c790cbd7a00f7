"""Pickle and torch's archives, read as inert data and written."""
