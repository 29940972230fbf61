"""What is only for training: a small trainer, and the check that every parameter of a loss reaches the optimiser."""

from mikit.distillation.auxiliary_teacher import auxiliary_teacher, train_auxiliary_teacher
from mikit.distillation.chunking import chunked_backward
from mikit.distillation.classics import CRD, DKD, AttentionTransfer, ChannelMMD, FitNet, HintonKD
from mikit.distillation.critic_reading import CriticReading, MIMKDInformation
from mikit.distillation.curve import EpochRecord, TrainingCurve
from mikit.distillation.feature_queue import FeatureQueue
from mikit.distillation.gap_diagnosis import ClassGap, GapDiagnosis
from mikit.distillation.gather import AcrossRanks, gathered_rows
from mikit.distillation.information_flow import InformationFlow
from mikit.distillation.kd2m import KD2M
from mikit.distillation.layer_pairs import Distilled, LayerPairs
from mikit.distillation.mimkd import MIMKD
from mikit.distillation.optimizers import check_optimizer
from mikit.distillation.pkt import PKT
from mikit.distillation.plan import DistillationTerm, TrainingPlan, random_stream
from mikit.distillation.recipes import RECIPES, Ingredient, Recipe, distillation_terms, read_ingredients
from mikit.distillation.recording import PhaseRecorder, example_features, example_layers
from mikit.distillation.trainer import Views, accuracy_on, logits_on, train_network, train_student

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
