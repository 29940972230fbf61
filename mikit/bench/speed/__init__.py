"""Time, memory and numerical errors of mikit's formulas and other libraries."""
