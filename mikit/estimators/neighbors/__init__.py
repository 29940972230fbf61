"""Nearest-neighbor estimators of mutual information."""
