"""What is done with a batch: one file a method, behind :class:`~.base.Method`."""
