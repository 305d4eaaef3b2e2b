"""Proposals for missing boxes, their review, and the completed data set."""
