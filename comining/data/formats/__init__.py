"""One file a format of annotations; each ends in an :class:`AnnotationSet`."""
