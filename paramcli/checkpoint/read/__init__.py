"""Containers to a Source: names, dtypes, shapes, and where the bytes are."""
