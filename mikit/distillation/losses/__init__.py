"""Distillation losses that compare student and teacher sample by sample or neighborhood by neighborhood."""
