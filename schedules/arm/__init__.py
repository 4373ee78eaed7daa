"""Kernels of Arm CPUs alone, and what the templates of ``schedules/cpu`` want to know of NEON."""
