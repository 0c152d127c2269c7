"""The tables of benchmark.py, a module each: `make_table` measures and returns the rows and the notes below them."""
