"""Training methods, one file per method; see :class:`~.method.Method`."""
