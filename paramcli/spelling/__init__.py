"""What keys mean: forms and records to chains, views and roles."""
