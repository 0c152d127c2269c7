"""Defaults of the mathematics that flags share, without torch."""

DEFAULT_DAMPING = 0.08  # of an interactive image's modes, 1 is critical
