from __future__ import annotations

import pytest
import torch

from mikit.core.errors import InputError
from mikit.models import ResNet8


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("channels", "size", "width"), [(1, 8, 0.5), (3, 32, 1.0), (1, 8, 2.0), (4, 5, 0.25)])
def test_shapes_at_every_layer(channels, size, width):
    network = ResNet8(channels=channels, classes=7, width=width, generator=seeded(0))
    seen = {}
    for name in ResNet8.layers:
        network.get_submodule(name).register_forward_hook(lambda *args, name=name: seen.update({name: args[2].shape}))
    assert network(torch.randn(3, channels, size, size, generator=seeded(1))).shape == (3, 7)
    w = [round(base * width) for base in (16, 32, 64)]
    half, quarter = -(-size // 2), -(-size // 4)
    assert list(seen) == list(ResNet8.layers)
    assert [tuple(shape[1:]) for shape in seen.values()] == [
        (w[0], size, size),
        (w[0], size, size),
        (w[1], half, half),
        (w[2], quarter, quarter),
        (w[2],),
        (7,),
    ]


def test_the_stages_end_before_their_relu():
    network = ResNet8(generator=seeded(0))
    seen = {}
    for name in ("stem", "stage1", "stage2", "stage3", "pool"):
        network.get_submodule(name).register_forward_hook(lambda *args, name=name: seen.update({name: args[2]}))
    network(torch.rand(20, 1, 8, 8, generator=seeded(1)))
    assert all(bool((seen[name] < 0).any()) for name in ("stage1", "stage2", "stage3"))
    assert bool((seen["stem"] >= 0).all())
    torch.testing.assert_close(seen["pool"], seen["stage3"].relu().mean((2, 3)))


def test_the_generator_decides_the_weights_and_nothing_else_changes():
    state = torch.random.get_rng_state()
    first, same, other = (ResNet8(width=0.5, generator=seeded(s)) for s in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    for (name, a), b, c in zip(first.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert torch.isfinite(a).all()
        if a.ndim > 1:
            assert not torch.equal(a, c), name


def test_convolutions_start_with_the_variance_of_kaiming():
    network = ResNet8(channels=16, width=4.0, generator=seeded(0))
    for name, weight in network.named_parameters():
        if weight.ndim == 4:
            fan_out = weight.shape[0] * weight.shape[2] * weight.shape[3]
            # The variance of n normal draws has a relative standard error of (2 / n)^½.
            assert abs(float(weight.detach().var()) * fan_out / 2 - 1) < 5 * (2 / weight.numel()) ** 0.5, name


def test_every_parameter_gets_a_gradient():
    network = ResNet8(generator=seeded(0))
    network(torch.rand(8, 1, 8, 8, generator=seeded(1))).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.parameters())


@pytest.mark.parametrize("sizes", [{"width": 0.01}, {"channels": 0}, {"classes": 1}])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(InputError, match="ResNet8 was called with"):
        ResNet8(**sizes)


@pytest.mark.parametrize("shape", [(3, 64), (2, 1, 3, 8)])
def test_impossible_images_are_refused(shape):
    with pytest.raises(InputError, match="at least 4×4"):
        ResNet8(generator=seeded(0))(torch.zeros(shape))


def test_the_forward_is_the_chain_of_its_parts():
    network = ResNet8(generator=seeded(0)).eval()
    images = torch.rand(5, 1, 8, 8, generator=seeded(1))
    maps = network.stem(images)
    for stage in (network.stage1, network.stage2, network.stage3):
        maps = stage(maps).relu()
    torch.testing.assert_close(network(images), network.fc(maps.mean((2, 3))))
