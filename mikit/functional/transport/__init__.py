"""Optimal transport: exact, sliced, entropic, and between spaces of different dimension."""
