"""A mean teacher follows tensor by tensor, whatever their number, in one operation a kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reid_core.methods.teacher import MeanTeacher
from reid_core.models import backbones
from reid_core.models.encoders import ImageEncoder


class Operations(TorchDispatchMode):
    """Notes what torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [backbones.SMALL, backbones.SMALL_VIT])
@pytest.mark.parametrize("momentum", [0.95, 0.25])
def test_a_step_is_that_of_every_tensor_by_itself(name: str, momentum: float) -> None:
    student = ImageEncoder(backbones.load(name), height=64, width=32)
    both, generator = MeanTeacher(student, momentum=momentum), torch.Generator().manual_seed(0)
    for x in student.state_dict().values():
        x.copy_(torch.randint(1, 99, x.shape, generator=generator) / 7)
    pixels = student.pixel_scale.clone()
    new = student.state_dict()
    alone = {
        key: mean.lerp(new[key], 1 - momentum) if mean.is_floating_point() else new[key]
        for key, mean in both.teacher.state_dict().items()
    }
    with Operations() as operations:
        both._approach()
    assert operations.names == ["_foreach_lerp_", "_foreach_copy_"]  # the counts of batches
    for key, mean in both.teacher.state_dict().items():
        assert torch.equal(mean, alone[key]), key
        assert not torch.equal(mean, new[key]) or not mean.is_floating_point(), key
    assert torch.equal(both.teacher.pixel_scale, pixels)  # no weight, and alike in both
    assert all(torch.equal(x, new[key]) for key, x in student.state_dict().items())
