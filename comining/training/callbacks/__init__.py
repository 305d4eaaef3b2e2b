"""Callbacks of training: logging, pictures, the divergence guard, checkpoints."""
