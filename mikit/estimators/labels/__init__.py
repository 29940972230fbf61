"""Estimators of the information about class labels."""
