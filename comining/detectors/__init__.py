"""One-stage detectors of torchvision behind one seam (:class:`comining.detectors.base.DenseDetector`)."""
