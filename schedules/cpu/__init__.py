"""Kernel templates of every CPU: what instructions they use is in ``x86`` and ``arm``."""
