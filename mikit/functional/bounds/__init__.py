"""Variational bounds on mutual information and related objectives."""
