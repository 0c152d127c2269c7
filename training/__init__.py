"""Training and its measuring: shared flags, run folders, the loop, losses and figures."""
