"""COCO metrics, the quality of mined boxes, and prediction on pictures."""
