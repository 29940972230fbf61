"""Estimators that model densities with normalizing flows."""
