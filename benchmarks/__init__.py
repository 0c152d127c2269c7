"""The tables of benchmark.py, a module each: `make_table` measures and returns the rows and the notes below them."""


class BenchmarkError(ValueError):
    """What cannot be measured here. The message is one line that names the argument."""

    is_user_error = True
