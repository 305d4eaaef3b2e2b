"""torchvision's one-stage detectors behind one seam, :class:`~.base.DenseDetector`."""
