"""Loggers for the figures and pictures of a run."""
