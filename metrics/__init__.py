"""What is measured: images, motion, distributions of videos, and the statistics of both."""


class WeightsError(ValueError):
    """Weights of a measuring network that cannot be used; the message is one line that names the file."""

    is_user_error = True
