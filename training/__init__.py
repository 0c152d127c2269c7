"""Training: the loop, run folders, data, losses, and a module for each thing that is trained."""
