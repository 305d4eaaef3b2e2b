"""The paper's three baselines: train on the original view, the augmented one, or both."""

from comining.methods.method import Method


class Supervised(Method):
    """``original``, ``augmented`` and ``joint`` of Table 1: annotations only, nothing is mined."""
