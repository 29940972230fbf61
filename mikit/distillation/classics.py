"""The classics to race against, in one place."""

from mikit.distillation.crd import CRD
from mikit.distillation.feature_losses import AttentionTransfer, ChannelMMD, FitNet
from mikit.distillation.logit_losses import DKD, HintonKD

__all__ = ["CRD", "DKD", "AttentionTransfer", "ChannelMMD", "FitNet", "HintonKD"]
