"""Annotation files and images, sparsity, second views, and batches."""
