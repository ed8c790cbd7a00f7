"""Files as the system has them: streams, locks, replacing whole files."""
