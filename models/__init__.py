"""The networks: motion prediction, frame synthesis, and how trained ones are loaded."""
