"""What happens around training steps: checkpoints."""
