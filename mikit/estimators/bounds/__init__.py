"""Bounds and estimates of mutual information with a learned critic."""
