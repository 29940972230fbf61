"""Discrepancies from optimal transport."""
