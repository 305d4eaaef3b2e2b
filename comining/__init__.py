"""Co-mining: object detectors from partly annotated images (Wang et al., AAAI 2021)."""

__version__ = "0.1.0"
