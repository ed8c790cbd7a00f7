"""The entries themselves, a family a file: tables to read, without maths and without torch."""
