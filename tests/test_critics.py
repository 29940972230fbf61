"""Critics and heads: pairs against a loop, standardisation, memory, state."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import mikit.critics
from mikit.core.errors import InputError
from mikit.critics import Bilinear, Critic, EmbeddingCritic, Joint, Separable
from mikit.estimators.vid.heads import HEADS, mean_head, transposed_head


def critics() -> list[Critic]:
    bilinear = Bilinear(3, 2)
    nn.init.normal_(bilinear.weight)
    return [
        Separable(3, 2, width=8, embedding=4),
        Separable(3, 2, width=8, embedding=4, offsets=False),
        bilinear,
        Joint(3, 2, width=8),
        Joint(3, 2, width=8, depth=1),
    ]


def features(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("critic", critics(), ids=lambda c: type(c).__name__)
@torch.no_grad()
def test_scores_are_those_of_single_pairs(critic: Critic) -> None:
    x, y = features(5, 3), features(4, 2, 1)
    critic.standardise_by(x, y)
    scores = critic(x, y)
    assert scores.shape == (5, 4)
    one_by_one = [[float(critic.scores(x[i : i + 1], y[j : j + 1])) for j in range(4)] for i in range(5)]
    torch.testing.assert_close(scores, torch.tensor(one_by_one), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(critic.pair_scores(x[:4], y), scores[:4].diagonal(), atol=1e-6, rtol=1e-5)
    if isinstance(critic, EmbeddingCritic):
        u, v = critic.embed(x, y)
        torch.testing.assert_close(u @ v.T, scores)


def test_separable_offsets_add_a_number_per_row_and_per_column() -> None:
    torch.manual_seed(0)
    critic, x, y = Separable(3, 2, width=8, embedding=4), features(5, 3), features(4, 2, 1)
    u, v = critic.embed(x, y)
    inner = u[:, :4] @ v[:, :4].T
    torch.testing.assert_close(critic.scores(x, y), inner + u[:, 4:5] + v[:, 5:6].T)


@pytest.mark.parametrize("critic", critics(), ids=lambda c: type(c).__name__)
def test_standardisation_makes_the_critic_blind_to_shift_and_scale(critic: Critic) -> None:
    x, y = features(50, 3).double(), features(50, 2, 1).double()
    critic.standardise_by(x, y)
    plain = critic.scores(x, y)
    scale = torch.tensor([1e-4, 1.0, 1e6]).double()
    moved = 1e4 * scale + scale * x
    critic.standardise_by(moved, y)
    torch.testing.assert_close(critic.scores(moved, y), plain, atol=1e-5, rtol=1e-5)
    assert {"mean_x", "scale_x", "mean_y", "scale_y"} <= set(critic.state_dict())


def test_constant_columns_get_scale_one() -> None:
    critic = Bilinear(3, 2)
    x = features(20, 3)
    x[:, 1] = 0.1
    critic.standardise_by(x, features(20, 2, 1))
    assert float(critic.scale_x[1]) == 1.0
    torch.testing.assert_close(critic.scale_x[0], x[:, 0].std(correction=0))


def test_joint_chunks_give_the_same_scores_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    critic, x, y = Joint(3, 2, width=8), features(7, 3).requires_grad_(), features(5, 2, 1)
    whole = critic.scores(x, y)
    expected = torch.autograd.grad(whole.square().sum(), [x, *critic.parameters()])
    monkeypatch.setattr(mikit.critics, "_PAIR_ENTRIES", 2 * 5 * 8)  # two rows at a time
    chunked = critic.scores(x, y)
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(torch.autograd.grad(chunked.square().sum(), [x, *critic.parameters()]), expected)
    with torch.no_grad():
        torch.testing.assert_close(critic.scores(x, y), whole.detach())


@pytest.mark.parametrize("critic", critics(), ids=lambda c: type(c).__name__)
def test_every_parameter_is_in_one_group_and_biases_are_undecayed(critic: Critic) -> None:
    groups = critic.param_groups()
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in critic.parameters())
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert all(group["weight_decay"] == 0.0 for group in groups[1:])


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("arch", HEADS)
def test_heads_map_rows_and_maps_position_by_position(arch: str, spatial: bool) -> None:
    torch.manual_seed(0)
    head = mean_head(arch, 6, 4, spatial=spatial).eval()
    x = features(5, 6 * 6).reshape(5, 6, 3, 2) if spatial else features(5, 6)
    assert head(x).shape == ((5, 4, 3, 2) if spatial else (5, 4))
    if spatial:
        torch.testing.assert_close(head(x)[:, :, 1:2, :1], head(x[:, :, 1:2, :1]))


def test_heads_are_the_published_layouts() -> None:
    def layout(arch: str) -> list[tuple[str, int]]:
        return [
            (type(m).__name__, m.out_channels if isinstance(m, nn.Conv2d) else 0)
            for m in mean_head(arch, 6, 4, spatial=True)
        ]

    assert layout("linear") == [("Conv2d", 4)]
    assert layout("linear2") == [("Conv2d", 4), ("Conv2d", 4)]
    assert layout("relu3") == [("Conv2d", 4), ("ReLU", 0), ("Conv2d", 4), ("ReLU", 0), ("Conv2d", 4)]
    hidden = [("Conv2d", 8), ("BatchNorm2d", 0), ("ReLU", 0)]
    assert layout("bn_relu3x2") == [*hidden, *hidden, ("Conv2d", 4)]


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (8, 8), (7, 5), (1, 9), (13, 32)])
def test_transposed_heads_end_at_the_size_asked_for_and_use_all_of_every_kernel(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    head = transposed_head(6, 3, size)
    out = head(features(20, 6))
    assert out.shape == (20, 3, *size)
    # Without ReLU, which may silence a channel, whatever has no gradient is a weight that no position reads.
    nn.Sequential(*(m for m in head if not isinstance(m, nn.ReLU)))(features(20, 6)).square().sum().backward()
    assert all(bool((p.grad != 0).all()) for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transposed_head(2, 2, (0, 4)), "0 x 4; all must be at least 1"),
        (lambda: Bilinear(0, 2), "at least 1"),
        (lambda: Separable(2, 2, width=0), "at least 1"),
        (lambda: Joint(2, 2, depth=0), "at least 1"),
        (lambda: Bilinear(3, 2).scores(torch.ones(4, 2), torch.ones(4, 2)), "width 3"),
        (lambda: mean_head("relu4", 2, 2, spatial=False), "no head"),
        (lambda: mean_head("linear", 0, 2, spatial=False), "at least 1"),
    ],
)
def test_unusable_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
