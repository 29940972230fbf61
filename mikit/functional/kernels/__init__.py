"""Kernel discrepancies and dependence indices."""
