"""Batch normalization whose statistics are those of the global batch, on any backend.

torch's SyncBatchNorm refuses CPU tensors, and on CUDA it waits for the device in every layer. This
one gathers every worker's mean, variance and count, so one step does not depend on the number of
workers. Processes normalize with torch's kernels, those of its SyncBatchNorm on CUDA and those of
its BatchNorm on the CPU; the threads of strict training with a formula that autograd takes apart,
whose bits do not change with torch's kernels.
"""

from __future__ import annotations

from typing import Any

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
        if not collectives.are_threads():
            return self._with_kernels(x)
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

    def _with_kernels(self, x: Tensor) -> Tensor:
        kernels = _OnCuda if x.is_cuda else _OnCpu
        normalized: Tensor
        normalized, mean, unbiased = kernels.apply(x, self.weight, self.bias, self.eps)
        self._track(mean, unbiased)
        return normalized

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


class _OnCuda(torch.autograd.Function):
    """torch's SyncBatchNorm without its search for workers that have no row, a wait per layer."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = _dense(x)
        channels = x.shape[1]
        mean, invstd = torch.batch_norm_stats(x, eps)
        count = mean.new_full((1,), x.numel() // channels)
        parts = collectives.gather_rows(torch.cat([mean, invstd, count]).unsqueeze(0))
        means, invstds, counts = parts.split([channels, channels, 1], dim=1)
        mean, invstd = torch.batch_norm_gather_stats_with_counts(
            x, means, invstds, None, None, 0.0, eps, counts.flatten()
        )
        ctx.save_for_backward(x, weight, mean, invstd, counts.to(torch.int32))
        total = counts.sum()
        unbiased = (invstd.pow(-2) - eps) * total / (total - 1).clamp_min(1)
        ctx.mark_non_differentiable(mean, unbiased)
        return torch.batch_norm_elemt(x, weight, bias, mean, invstd, eps), mean, unbiased

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd, counts = ctx.saved_tensors
        grad = _dense(grads[0])
        needed = ctx.needs_input_grad[:3]
        sum_dy, sum_dy_xmu, of_weight, of_bias = torch.batch_norm_backward_reduce(
            grad, x, mean, invstd, weight, *needed
        )
        of_x = None
        if needed[0]:
            both = collectives.sum_over_workers(torch.cat([sum_dy, sum_dy_xmu]))
            of_x = torch.batch_norm_backward_elemt(
                grad, x, mean, invstd, weight, both[: len(mean)], both[len(mean) :], counts
            )
        # the gradients of weight and bias are averaged with all others
        return of_x, of_weight if needed[1] else None, of_bias if needed[2] else None, None


class _OnCpu(torch.autograd.Function):
    """The same from the pieces of torch's BatchNorm, which the CPU has too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        # bfloat16 has too few digits for statistics
        wide = x.float() if x.element_size() < 4 else x
        own = torch.batch_norm_update_stats(wide, None, None, 0.0)  # a pass, where var_mean is slow
        mean, variance, count = _combined(*own, x.numel() // x.shape[1])
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps), count)
        ctx.eps = eps
        out, *_ = torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)
        unbiased = variance * count / (count - 1).clamp_min(1)
        ctx.mark_non_differentiable(mean, unbiased)
        return out, mean, unbiased

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd, count = ctx.saved_tensors
        # sums over this worker's rows of dy (x - mean) / deviation and of dy
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, weight, None, None, mean, invstd, True, ctx.eps, [False, True, True]
        )
        needed, of_x = ctx.needs_input_grad[:3], None
        if needed[0]:
            both = collectives.sum_over_workers(torch.stack([of_bias, of_weight])) / count
            slope = invstd if weight is None else invstd * weight
            factor = -slope * invstd * both[1]
            shift = -slope * both[0] - factor * mean
            shape = [1, -1] + [1] * (x.dim() - 2)
            of_x = torch.addcmul(shift.view(shape), x, factor.view(shape))
            of_x = of_x.addcmul_(grads[0], slope.view(shape)).to(x.dtype)
        return of_x, of_weight if needed[1] else None, of_bias if needed[2] else None, None


def _dense(x: Tensor) -> Tensor:
    """As the kernels take it, channels last or first."""
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if channels_last else x.contiguous()


def _global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and rows per channel () over all workers, with gradient.

    Every worker centers its rows on its own mean, and the parts are combined exactly: sums of
    squares around any fixed value would cancel where channels lie far from it.
    """
    dims = [d for d in range(x.dim()) if d != 1]
    variance, mean = torch.var_mean(x, dims, correction=0)
    return _combined(mean, variance, x.numel() // x.shape[1])


def _combined(mean: Tensor, variance: Tensor, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of all workers from those of this one."""
    channels = len(mean)
    count = mean.new_full((1,), float(num_rows))  # from a list it would be copied
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
