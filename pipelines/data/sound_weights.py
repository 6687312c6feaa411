"""Whether the weights of a run can be read and take its images, tried with one image of zeros."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipelines.config.run import RunConfig
from pipelines.errors import UserError
from reid_core.methods import METHODS
from reid_core.models import backbones, remarks


@dataclass(frozen=True)
class Weights:
    """What is known of weights that were tried.

    Attributes:
        encoder_bytes: size of what is trained.
        remarks: sentences on what they were not trained on, or that they are random.
    """

    encoder_bytes: int
    remarks: tuple[str, ...]


def check(config: RunConfig, *, begun: bool = False) -> Weights:
    """Load the model once and pass one image through its encoder.

    Args:
        config: the run's configuration.
        begun: a run goes on, under the name that its model had when it began.

    Raises:
        UserError: unknown model, missing or unfitting weights, a model that takes no such image.
    """
    size, method = (config.model.height, config.model.width), METHODS[config.method]
    try:
        options = config.model.options()
        model = backbones.load(
            config.model.name, config.model.pretrained, options=options, tagged=begun
        )
        encoder = method.load_encoder(config.settings, model, *size, None).eval()
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    try:
        with torch.inference_mode():
            encoder.embed(torch.zeros(1, 3, *size, dtype=torch.uint8), method.inputs[0])
    except Exception as error:  # of a layer inside, whose words say what does not fit
        raise UserError(
            f"model.name={config.model.name} cannot embed an image of {size[0]} x {size[1]} as it "
            f"is taken apart here: {error}. Take another model of the table in docs/encoders.md"
        ) from error
    for name, parameter in model.model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(
                f"model.pretrained={config.model.pretrained}: {name} holds numbers that are not "
                "finite: the weights are damaged, take others"
            )
    said = [*remarks.of_weights(model, height=size[0], width=size[1])]
    if config.model.pretrained is None and config.start_from is None and not begun:
        said.append(f"model.pretrained=null: {config.model.name} begins with random weights")
    assert isinstance(encoder, torch.nn.Module)
    num_bytes = sum(p.numel() * p.element_size() for p in encoder.parameters())
    return Weights(num_bytes, tuple(said))
