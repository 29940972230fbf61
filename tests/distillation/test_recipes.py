"""Recipes: every loss builds and trains with the weight of the table; typos and misplaced layers are told in words."""

from __future__ import annotations

import pytest
import torch

import mikit
from mikit.core.errors import InputError
from mikit.distillation import (
    RECIPES,
    TrainingPlan,
    distillation_terms,
    random_stream,
    read_ingredients,
    train_student,
)
from mikit.models import ResNet8

BATCH = 25


@pytest.fixture(scope="module")
def part():
    return mikit.datasets.digits().train.per_class(5, seed=0)


def networks():
    student = ResNet8(width=0.25, generator=random_stream(0, "weights"))
    return student, ResNet8(width=0.5, generator=random_stream(1, "weights")).eval()


def built(text, part, **settings):
    generator = random_stream(0, "losses")
    student, teacher = networks()
    terms = distillation_terms(
        text, student, teacher, part.images, part.labels, batch=BATCH, generator=generator, **settings
    )
    return student, teacher, terms


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_with_its_weight_and_moves_the_losses_own_parameters(name, part):
    student, teacher, terms = built(name, part)
    own = {"vid": 10.0, "pkt": 10.0, "flow": 10.0, "mimkd": 3.0}.get(name, 1.0)  # their recommended_weight
    assert {term.weight for term in terms.values()} == {own * RECIPES[name].weight}
    assert {layer for term in terms.values() for layer in term.layers} == set(RECIPES[name].layers)
    before = {key: p.detach().clone() for key, term in terms.items() for p in term.loss.parameters()}
    curve = train_student(
        student, teacher, terms, part.images, part.labels, TrainingPlan(epochs=1, batch=BATCH, rate=0.01)
    )
    assert curve.diverged is None
    assert list(curve.records[0].terms) == list(terms)
    after = {key: p.detach().clone() for key, term in terms.items() for p in term.loss.parameters()}
    assert all(not torch.equal(before[key], after[key]) for key in before)


def test_the_same_generator_builds_the_same_losses(part):
    first, second = (built("vid+mimkd", part)[2] for _ in range(2))
    assert list(first) == list(second)
    for name, term in first.items():
        other = second[name].loss.state_dict()
        assert all(torch.equal(value, other[key]) for key, value in term.loss.state_dict().items())


def test_losses_act_together_each_with_its_weight(part):
    _, _, terms = built("vid:3+hinton", part, pairs=[("stage2", "stage3")])
    assert {name: (term.layer, term.source, term.weight) for name, term in terms.items()} == {
        "vid": ("stage2", "stage3", 30.0),
        "hinton": ("fc", "fc", 1.0),
    }


def test_one_loss_over_several_layers_takes_the_pairs_at_once(part):
    _, _, terms = built("mimkd", part, pairs=[("stage2", "stage3"), ("pool", "pool")])
    assert terms["mimkd"].layers == ("stage2", "pool")
    assert terms["mimkd"].sources == ("stage3", "pool")


def test_a_label_tells_a_weight_of_ones_own():
    assert [one.label for one in read_ingredients("vid:3+hinton:1")] == ["vid:3", "hinton"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vdi", 'no loss "vdi". Did you mean vid?'),
        ("", 'no loss ""'),
        ("vid+vid:3", "occurs twice"),
        ("vid:", 'The weight "" in "vid:"'),
        ("vid:-1", 'The weight "-1"'),
        ("vid:inf", 'The weight "inf"'),
        ("vid:nan", 'The weight "nan"'),
    ],
)
def test_what_is_no_loss_is_told(text, said):
    with pytest.raises(InputError, match=said.replace("?", r"\?")):
        read_ingredients(text)


@pytest.mark.parametrize(
    ("text", "pair", "said"),
    [
        (
            "vid",
            ("stge2", "stage3"),
            r"between the layers stge2:stage3\. The model has no module .stge2.\. Did",
        ),
        ("attention", ("stage2", "pool"), "between the layers stage2:pool.*needs feature maps"),
        ("mimkd", ("pool", "fc"), r"between the layers pool:fc\. "),
    ],
)
def test_a_loss_that_cannot_stand_there_names_the_layers(part, text, pair, said):
    with pytest.raises(InputError, match=said):
        built(text, part, pairs=[pair])
