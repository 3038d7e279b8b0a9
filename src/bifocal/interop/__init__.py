"""Checkpoints of other tools: reading theirs, writing ours so that theirs open."""
