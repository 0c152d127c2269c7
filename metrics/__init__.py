"""What is measured: images, motion, distributions of videos, and the statistics of both."""
