"""The edits: each with its options and promise in one file, and with its work, which needs torch, in the one beside it."""
