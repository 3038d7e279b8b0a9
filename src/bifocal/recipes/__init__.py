"""Named runs: each recipe is a Python function that returns a frozen dataclass, and here it meets model and data."""
