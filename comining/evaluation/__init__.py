"""COCO's numbers, and the judgement of what is mined."""
