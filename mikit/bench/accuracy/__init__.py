"""Errors, intervals and verdicts of estimators on tasks with known mutual information."""
