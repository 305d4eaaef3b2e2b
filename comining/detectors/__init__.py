"""torchvision's detectors, trained by explicit targets; see :class:`~.detector.Detector`."""
