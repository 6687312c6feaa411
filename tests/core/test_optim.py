"""Learning rates value for value, and what each parameter group gets."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from reid_core import optim
from reid_core.methods.csdn.optimization import optimizer as csdn_optimizer
from reid_core.methods.csdn.settings import Config as CsdnConfig
from reid_core.models import backbones
from reid_core.models.encoders import ImageEncoder
from reid_core.models.options import Options
from tests.waits import operations_of


@pytest.fixture
def network() -> nn.Module:
    layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    layers[2].requires_grad_(False)
    return layers


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [(0, 0.01), (1, 0.109), (5, 0.505), (9, 0.901), (10, 1.0), (29, 1.0), (30, 0.1), (49, 0.1)],
)
def test_cclnet_factors(epoch, factor):
    assert optim.warmup_steps(epoch) == pytest.approx(factor, rel=1e-12)


def test_cclnet_learns_with_one_percent_when_swapping_starts():
    assert optim.warmup_steps(61) == pytest.approx(0.01)
    assert optim.warmup_steps(120) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("epoch", "lr"),
    [(0, 3e-6), (1, 3.27e-5), (5, 1.515e-4), (9, 2.703e-4), (10, 3e-4), (69, 3e-5), (70, 3e-6)],
)
def test_csdn_stage_3_rates(epoch, lr):
    assert 3e-4 * optim.warmup_steps(epoch, milestones=(40, 70)) == pytest.approx(lr, rel=1e-9)


@pytest.mark.parametrize(
    ("epoch", "lr"),
    [(0, 1e-5), (1, 6.8e-5), (4, 2.42e-4), (5, 2.9491e-4), (30, 1.5050e-4), (59, 1.2049e-6)],
)
def test_csdn_prompt_rates(epoch, lr):
    value = optim.warmup_cosine(
        epoch, epochs=60, lr=3e-4, min_lr=1e-6, warmup_lr=1e-5, warmup_epochs=5
    )
    assert value == pytest.approx(lr, rel=5e-5)


def test_cosine_goes_from_one_to_zero():
    assert [optim.cosine(e, epochs=4) for e in (0, 2, 4)] == pytest.approx([1, 0.5, 0])


def test_biases_learn_twice_as_fast_and_frozen_parts_are_left_out(network):
    optimizer = optim.adam_per_tensor(network.named_parameters(), lr=1e-3, weight_decay=5e-4)
    shapes = [[tuple(p.shape) for p in group["params"]] for group in optimizer.param_groups]
    assert shapes == [[(4, 3), (4,)], [(4,), (4,)]]
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 2e-3]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {5e-4}
    optim.set_lr(optimizer, 1e-4)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 2e-4]


def of_heads(name: str) -> float:
    return 2e-2 if name.startswith(("encoder.neck", "classifier")) else 1e-2


RATES = {"lr": 1e-2, "weight_decay": 5e-4}
# how a method's optimizer is made, torch's own, and what that is given for each tensor
OPTIMIZERS: dict[str, tuple[Any, Any, Any]] = {
    "adam": (
        lambda module: optim.adam_per_tensor(module.named_parameters(), **RATES),
        torch.optim.Adam,
        lambda name, _: RATES | {"lr": 2e-2 if "bias" in name else 1e-2},
    ),
    "adamw": (
        lambda module: optim.adamw(module.named_parameters(), **RATES),
        torch.optim.AdamW,
        lambda _, p: RATES | {"weight_decay": 5e-4 if p.ndim > 1 else 0.0},
    ),
    "sgd": (
        lambda module: optim.sgd(module.named_parameters(), **RATES),
        torch.optim.SGD,
        lambda *_: RATES | {"momentum": 0.9},
    ),
    "csdn": (
        lambda module: csdn_optimizer(CsdnConfig(images=RATES), "images", module),
        torch.optim.Adam,
        lambda name, _: RATES | {"lr": of_heads(name)},
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_equal_one_group_per_tensor_and_are_fused(name: str) -> None:
    """In one operation per group, in which CUDA has all tensors of it."""
    make, plain, given = OPTIMIZERS[name]
    encoder = nn.ModuleDict({"trunk": nn.Linear(3, 4), "neck": nn.BatchNorm1d(4)})
    module = nn.ModuleDict({"encoder": encoder, "classifier": nn.Linear(4, 2)})
    module["frozen"] = nn.Linear(4, 2).requires_grad_(False)
    twin = deepcopy(module)
    trained = [(n, p) for n, p in twin.named_parameters() if p.requires_grad]
    per_tensor = plain([{"params": [p], **given(n, p)} for n, p in trained], foreach=False)
    merged = make(module)
    assert len(merged.param_groups) < len(trained)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for own, theirs in zip(module.parameters(), twin.parameters(), strict=True):
            own.grad = torch.randn(own.shape, generator=generator) if own.requires_grad else None
            theirs.grad = own.grad
        with profile(activities=[ProfilerActivity.CPU]) as watched:
            merged.step()
        per_tensor.step()
    fused = f"aten::_fused_{plain.__name__.lower()}_"
    assert operations_of(watched)[fused] == len(merged.param_groups)
    for own, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-6, atol=1e-7)


def test_cpcl_biases_do_not_decay_and_eps_is_large(network):
    optimizer = optim.adam_per_tensor(
        network.named_parameters(), lr=1e-5, weight_decay=4e-5, bias_weight_decay=0.0, eps=1e-3
    )
    groups = optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [4e-5, 0.0]
    assert [group["lr"] for group in groups] == [1e-5, 2e-5]
    assert {group["eps"] for group in groups} == {1e-3}
    assert {group["betas"] for group in groups} == {(0.9, 0.999)}


def test_adamw_decays_matrices_only(network):
    optimizer = optim.adamw(network.named_parameters(), lr=1e-3, weight_decay=0.1)
    decay = {p.ndim: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay == {2: 0.1, 1: 0.0}
    optim.set_lr(optimizer, 5e-4)
    assert {group["lr"] for group in optimizer.param_groups} == {5e-4}


@pytest.mark.parametrize("build", [optim.adam_per_tensor, optim.adamw])
def test_nothing_to_train_is_an_error(build, network):
    network.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        build(network.named_parameters(), lr=1e-3, weight_decay=0.0)


def test_rates_fall_from_block_to_block_towards_the_patches():
    model = backbones.load(backbones.SMALL_VIT, options=Options(layer_decay=0.5))
    encoder = ImageEncoder(model, height=96, width=48)
    rates = {}
    for optimizer in (
        optim.adamw(encoder.named_parameters(), lr=1.0, weight_decay=0.1),
        optim.sgd(encoder.named_parameters(), lr=1.0, weight_decay=0.1),
        optim.adam_per_tensor(
            encoder.named_parameters(), lr=1.0, weight_decay=0.1, bias_lr_factor=1.0
        ),
    ):
        optim.set_lr(optimizer, 1.0)
        result = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        rates = {name: result[id(p)] for name, p in encoder.named_parameters() if id(p) in result}
        # four blocks: the patches get 0.5^5, block i 0.5^(4 - i), what follows everything
        assert rates["visible_stem.conv1.weight"] == rates["infrared_stem.ln_pre.bias"] == 0.5**5
        assert [rates[f"trunk.blocks.{i}.ln_1.weight"] for i in range(4)] == [
            0.5**4, 0.5**3, 0.5**2, 0.5
        ]  # fmt: skip
        assert rates["trunk.norm.weight"] == rates["neck.weight"] == 1.0


def test_stem_blocks_count_before_the_trunks_and_alike_in_both_modalities():
    options = Options(layer_decay=0.5, stem_blocks=1)
    model = backbones.load(backbones.SMALL_VIT, options=options)
    encoder = ImageEncoder(model, height=96, width=48)
    factors = {name: vars(p)["lr_factor"] for name, p in encoder.named_parameters()}
    assert factors["visible_stem.blocks.0.ln_1.weight"] == 0.5**4
    assert factors["infrared_stem.blocks.0.ln_1.weight"] == 0.5**4
    assert factors["trunk.blocks.0.ln_1.weight"] == 0.5**3
    assert factors["trunk.blocks.2.ln_1.weight"] == 0.5
