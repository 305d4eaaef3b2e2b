"""From annotation files and images to batches; sparsity and second views."""
