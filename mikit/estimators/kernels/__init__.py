"""Discrepancies and dependence indices from kernels."""
