"""Nearest-neighbor estimators of entropy and mutual information."""
