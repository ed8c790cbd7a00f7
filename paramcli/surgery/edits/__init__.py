"""The edits: the options and promise of each in one file, and its work, which needs torch, in the one beside it."""
