"""Variational information distillation."""
