"""Batch normalisation whose statistics are those of the global batch, on any backend.

torch's SyncBatchNorm refuses CPU tensors; this one all-reduces count, sum and square sum with a
differentiable collective, so one step does not depend on the number of workers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipelines import collectives


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm1d/2d over the rows of all workers. Parameters and buffers keep their names."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        self._check_input_dim(x)
        if not self.training:
            return super().forward(x)
        dims = [d for d in range(x.dim()) if d != 1]
        # Sums around the running mean: a shift that all workers share keeps float32 accurate.
        assert self.running_mean is not None
        assert self.running_var is not None
        shape = [1, -1] + [1] * (x.dim() - 2)
        shift = self.running_mean.detach().clone()
        centred = x - shift.view(shape)
        local_count = x.numel() // x.shape[1]
        packed = torch.cat(
            [centred.sum(dims), centred.square().sum(dims), x.new_tensor([float(local_count)])]
        )
        packed = collectives.sum_with_gradient(packed)
        channels, count = x.shape[1], packed[-1].detach()
        mean = packed[:channels] / count
        variance = (packed[channels:-1] / count - mean.square()).clamp_min(0)
        self._track(mean.detach() + shift, variance.detach() * count / (count - 1).clamp_min(1))
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        out = (centred - mean.view(shape)) * scale.view(shape)
        return out if self.bias is None else out + self.bias.view(shape)

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked += 1
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(unbiased, momentum)


def convert(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm below `module` by GlobalBatchNorm, keeping its tensors.

    Returns the module itself, or its replacement where it is a BatchNorm.
    """
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        new = GlobalBatchNorm(module.num_features, module.eps, module.momentum, module.affine, True)
        new.weight, new.bias = module.weight, module.bias
        new.running_mean, new.running_var = module.running_mean, module.running_var
        new.num_batches_tracked = module.num_batches_tracked
        new.training = module.training
        return new
    for name, child in module.named_children():
        replacement = convert(child)
        if replacement is not child:
            setattr(module, name, replacement)
    return module
