"""The adapters can be imported without their libraries, and say which extra brings them."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from mikit.activations import ActivationStore
from mikit.adapters.lightning import phase_callback
from mikit.adapters.transformers import DistillationTrainerMixin
from mikit.core.errors import InputError
from mikit.distillation import PhaseRecorder


def test_a_missing_lightning_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.setitem(sys.modules, "lightning.pytorch.callbacks", None)
    store = ActivationStore(tmp_path / "store", network="student", seed=0)
    recorder = PhaseRecorder(store, torch.zeros(2, 1), ids=[0, 1], layers=["0"], phases=[0])
    with pytest.raises(InputError, match=r"needs Lightning.*pip install 'mikit\[integrations\]'"):
        phase_callback(recorder, nn.Sequential(nn.Linear(1, 1)))


def test_missing_transformers_are_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs transformers and accelerate.*pip install 'mikit\[integrations\]'"):
        DistillationTrainerMixin().learn_from(object())
