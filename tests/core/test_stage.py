"""What a stage exchanges with the other workers, without them."""

from __future__ import annotations

import torch
from torch import Tensor

from reid_core.stage import gather_together


def test_tensors_of_any_length_come_back_to_the_bit_in_one_exchange() -> None:
    """Two workers' features of two modalities, fewer rows of one, and their labels."""
    generator = torch.Generator().manual_seed(0)
    workers = [
        [
            torch.randn(2, 3, 4, generator=generator),
            torch.randn(5, 1, 3, generator=generator),
            torch.randint(-1, 2**62, (2,), generator=generator),
            torch.tensor([-1, 0, 1, 2**31, -(2**52)]),  # some are the bits of no number
        ]
        for _ in range(2)
    ]
    sent: list[Tensor] = []

    def send(x: Tensor) -> Tensor:
        sent.append(x)
        return x

    for own in workers:
        for given, returned in zip(own, gather_together(send, *own), strict=True):
            assert torch.equal(returned, given)  # one worker alone
    assert len(sent) == len(workers)
    for own in workers:
        whole = gather_together(lambda _: torch.cat(sent), *own)
        for tensors, returned in zip(zip(*workers, strict=True), whole, strict=True):
            assert torch.equal(returned, torch.cat(tensors))


def test_the_gradient_of_what_everyone_has_flows_back() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    labels = torch.tensor([4, -1])
    rows, _ = gather_together(lambda y: torch.cat([y, 2 * y.detach()]), x, labels)
    (rows * torch.arange(12.0).view(4, 3)).sum().backward()
    assert x.grad.tolist() == [[0, 1, 2], [3, 4, 5]]
