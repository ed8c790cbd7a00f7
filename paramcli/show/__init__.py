"""Results to terminals, JSON, HTML and drawings. The only rooms that import rich."""
