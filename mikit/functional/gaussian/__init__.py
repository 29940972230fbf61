"""Gaussian information, and the comparison of samples as Gaussians."""
