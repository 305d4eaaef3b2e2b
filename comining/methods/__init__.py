"""What is done with a batch: one file a method, all behind :class:`comining.methods.base.Method`."""
