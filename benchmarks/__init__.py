"""What is faster than what, measured: ``python -m benchmarks.step``, ``.data``, ``.evaluation``."""
