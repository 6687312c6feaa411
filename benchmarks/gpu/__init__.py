"""What a machine with a GPU does with this code: see `benchmarks.gpu.__main__`."""
