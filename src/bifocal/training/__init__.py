"""Training: the one loop, and what it stands on."""
