"""Information about class labels: probes, and plug-in estimates from counts."""
