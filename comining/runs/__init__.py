"""The files of a run, how it ends, and how it is resumed."""
