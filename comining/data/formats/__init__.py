"""Annotation formats, one file per format; each returns an :class:`AnnotationSet`."""
