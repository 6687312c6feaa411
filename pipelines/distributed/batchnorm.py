"""Batch normalization whose statistics are those of the global batch, on any backend.

torch's SyncBatchNorm refuses CPU tensors; this one gathers every worker's mean, variance and count
with a differentiable collective, so one step does not depend on the number of workers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipelines.distributed import collectives


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
        # bfloat16 has too few digits for statistics
        wide = x.float() if x.element_size() < 4 else x
        mean, variance, count = _global_moments(wide)
        self._track(mean.detach(), variance.detach() * count / (count - 1).clamp_min(1))
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shape = [1, -1] + [1] * (x.dim() - 2)
        out = (wide - mean.view(shape)) * scale.view(shape)
        if self.bias is not None:
            out = out + self.bias.view(shape)
        return out.to(x.dtype)

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


def _global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and rows per channel () over all workers, with gradient.

    Every worker centres its rows on its own mean, and the parts are combined exactly: sums of
    squares around any fixed value would cancel where channels lie far from it.
    """
    channels = x.shape[1]
    dims = [d for d in range(x.dim()) if d != 1]
    variance, mean = torch.var_mean(x, dims, correction=0)
    count = x.new_tensor([float(x.numel() // channels)])
    parts = collectives.gather(torch.cat([mean, variance, count]).unsqueeze(0))
    means, variances = parts[:, :channels], parts[:, channels:-1]
    counts = parts[:, -1:].detach()
    weights = counts / counts.sum()
    mean = (weights * means).sum(dim=0)
    variance = (weights * (variances + (means - mean).square())).sum(dim=0)
    return mean, variance, counts.sum()


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
