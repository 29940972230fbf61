"""check_optimizer finds parameters that would never train."""

from __future__ import annotations

import pytest
import torch

import mikit


def test_missing_and_doubled_parameters_are_errors() -> None:
    g = torch.Generator().manual_seed(0)
    student = torch.nn.Linear(6, 4)
    kd = mikit.VID.between(torch.randn(50, 4, generator=g), torch.randn(50, 5, generator=g))
    forgotten = torch.optim.SGD(student.parameters(), lr=0.1)
    with pytest.raises(mikit.InputError, match=r"lacks \d+ trainable parameters of VID"):
        mikit.check_optimizer(forgotten, student, kd)
    complete = torch.optim.SGD([{"params": student.parameters()}, *kd.param_groups()], lr=0.1)
    mikit.check_optimizer(complete, student, kd)
    with pytest.warns(UserWarning, match="duplicate"):
        doubled = torch.optim.SGD([*student.parameters(), student.weight], lr=0.1)
    with pytest.raises(mikit.InputError, match="contains 1 parameters twice"):
        mikit.check_optimizer(doubled, student)
