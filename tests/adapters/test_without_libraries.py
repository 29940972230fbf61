"""The adapters can be imported without their libraries, and say which extra brings them."""

from __future__ import annotations

import subprocess
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


def test_importing_the_adapters_imports_no_library():
    code = (
        "import sys, mikit.adapters.lightning, mikit.adapters.transformers as t; "
        "print(sorted({'lightning', 'transformers', 'accelerate'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
