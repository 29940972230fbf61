"""Streamed computation over all pairs of rows, and validation of samples."""
