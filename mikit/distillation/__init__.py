"""What is only for training: here, the check that every parameter of a loss reaches the optimiser."""

from mikit.distillation.optimizers import check_optimizer

__all__ = ["check_optimizer"]
