"""Tables and plots from the files of runs; imports nothing of the training code."""
