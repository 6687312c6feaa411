"""The fusion of two texts: its closed form, what cannot learn in it, and its dropout."""

from __future__ import annotations

import pytest
import torch

from reid_core.models.fusion import TextFusion, dropout_factors


def texts(seed: int) -> torch.Tensor:
    return torch.randn(5, 16, generator=torch.Generator().manual_seed(seed))


def test_attention_over_one_text_is_a_one_sided_residual() -> None:
    fusion, own, other = TextFusion(16, seed=0), texts(1), texts(2)
    value, output = fusion.value, fusion.output
    inner = torch.tanh(other @ value.weight.T + value.bias)
    expected = own + inner @ output.weight.T + output.bias
    torch.testing.assert_close(fusion(own, other), expected)
    assert not torch.allclose(fusion(own, other), fusion(other, own))


def test_query_and_key_take_part_and_learn_nothing() -> None:
    fusion = TextFusion(16, seed=0)
    fusion(texts(1), texts(2)).square().sum().backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None
        dead = name.startswith(("query", "key"))
        assert bool((parameter.grad == 0).all()) == dead, name


def test_dropped_values_leave_the_own_text_and_the_bias() -> None:
    fusion, own = TextFusion(16, seed=0), texts(1)
    nothing = fusion(own, texts(2), torch.zeros(5, 16))
    torch.testing.assert_close(nothing, own + fusion.output.bias)
    remaining = fusion(own, texts(2), torch.ones(5, 16))
    torch.testing.assert_close(remaining, fusion(own, texts(2)))


def test_published_size_and_seed() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in TextFusion(1024, seed=0).parameters()) == 4_198_400
    first, again, other = (TextFusion(16, seed=s).value.weight for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_dropout_factors_keep_the_mean() -> None:
    keep = dropout_factors((400, 100), rate=0.1, seed=1)
    assert keep.unique().tolist() == pytest.approx([0.0, 1 / 0.9])
    assert keep.mean().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(keep, dropout_factors((400, 100), rate=0.1, seed=1))
    assert bool((dropout_factors((4, 3), rate=0.0, seed=1) == 1).all())
