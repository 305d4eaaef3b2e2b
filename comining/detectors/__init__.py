"""torchvision's detectors, trained with explicit targets; see :class:`~.detector.Detector`."""
