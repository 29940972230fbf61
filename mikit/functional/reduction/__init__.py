"""Reduction of wide samples to a few informative directions."""
