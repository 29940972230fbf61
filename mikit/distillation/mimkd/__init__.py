"""MIMKD: distillation with contrastive critics."""
