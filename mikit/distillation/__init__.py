"""Distillation losses, losses between pairs of layers, and a small trainer for students."""

from mikit.distillation.across_ranks import AcrossRanks, gathered_rows
from mikit.distillation.chunking import chunked_backward
from mikit.distillation.examples import example_features, example_layers
from mikit.distillation.kd2m.diagnosis import ClassGap, GapDiagnosis
from mikit.distillation.kd2m.kd2m import KD2M
from mikit.distillation.kd2m.queue import FeatureQueue
from mikit.distillation.layer_pairs import Distilled, LayerPairs
from mikit.distillation.losses.crd import CRD
from mikit.distillation.losses.features import AttentionTransfer, ChannelMMD, FitNet
from mikit.distillation.losses.information_flow import InformationFlow
from mikit.distillation.losses.logits import DKD, HintonKD
from mikit.distillation.losses.pkt import PKT
from mikit.distillation.mimkd.information import CriticReading, MIMKDInformation
from mikit.distillation.mimkd.mimkd import MIMKD
from mikit.distillation.recipes import RECIPES, Ingredient, Recipe, distillation_terms, read_ingredients
from mikit.distillation.training.auxiliary_teacher import auxiliary_teacher, train_auxiliary_teacher
from mikit.distillation.training.curve import EpochRecord, TrainingCurve
from mikit.distillation.training.evaluation import accuracy_on, logits_on
from mikit.distillation.training.optimizers import check_optimizer
from mikit.distillation.training.plan import DistillationTerm, TrainingPlan, random_stream
from mikit.distillation.training.recording import PhaseRecorder
from mikit.distillation.training.run import Views
from mikit.distillation.training.trainer import train_network, train_student

__all__ = [
    "CRD",
    "DKD",
    "KD2M",
    "MIMKD",
    "PKT",
    "RECIPES",
    "AcrossRanks",
    "AttentionTransfer",
    "ChannelMMD",
    "ClassGap",
    "CriticReading",
    "DistillationTerm",
    "Distilled",
    "EpochRecord",
    "FeatureQueue",
    "FitNet",
    "GapDiagnosis",
    "HintonKD",
    "InformationFlow",
    "Ingredient",
    "LayerPairs",
    "MIMKDInformation",
    "PhaseRecorder",
    "Recipe",
    "TrainingCurve",
    "TrainingPlan",
    "Views",
    "accuracy_on",
    "auxiliary_teacher",
    "check_optimizer",
    "chunked_backward",
    "distillation_terms",
    "example_features",
    "example_layers",
    "gathered_rows",
    "logits_on",
    "random_stream",
    "read_ingredients",
    "train_auxiliary_teacher",
    "train_network",
    "train_student",
]
