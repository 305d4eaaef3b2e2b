"""What is done with a batch: one file a method; see :class:`~.method.Method`."""
