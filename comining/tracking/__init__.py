"""Where a run's figures and pictures go."""
