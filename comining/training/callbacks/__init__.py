"""What happens around training steps: logging, pictures, the divergence guard, checkpoints."""
