"""KD²M: distillation by matching the distributions of features."""
