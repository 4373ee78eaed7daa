"""Kernel families; see ``hwq.schedule``."""
