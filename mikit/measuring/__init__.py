"""Measuring: two samples in, a checked number out."""

from mikit.measuring.noise import NoiseSweep, noise_sweep
from mikit.measuring.pipeline import measure
from mikit.measuring.risk import RiskGap, risk_gap
from mikit.measuring.two_axes import BothAxes, both_axes

__all__ = ["BothAxes", "NoiseSweep", "RiskGap", "both_axes", "measure", "noise_sweep", "risk_gap"]
