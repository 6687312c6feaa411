"""What does an epoch cost beside the authors' code? Stage 0 of CCLNet, same images, same cores.

    git clone https://github.com/CzAngus/CCLNet && pip install easydict tqdm
    python -m benchmarks.authors --checkout CCLNet [--identities 500] [--epochs 2 5]

Their modules run as they are, on the CPU: what is said to CUDA is answered here, the small CLIP
takes the place of the one that they download, and the test that ends their training is left out.
Both sides take the numbers of their config_sysu.yaml, but for the size of an image, and two
processes that load. Each trains twice, for a few and for a few more epochs. An epoch costs the
difference over the number of epochs between, which leaves start, compilation and the final test
out; CPU seconds are those of all processes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.watched import run_module

HEIGHT, WIDTH = 96, 48
SIDES = ("authors", "ours")
_GRID = 7


@dataclass(frozen=True)
class Cost:
    """Of an epoch: wall-clock and CPU seconds; `peak` bytes of the longer training."""

    wall: float
    cpu: float
    peak: int


def train_ours(root: Path, out: Path, epochs: int) -> None:
    """Stage 0 by the published recipe, in one process without Ray."""
    from pipelines.config import run as configuration
    from pipelines.training import local

    overrides = [
        f"data.root={root}",
        "model.name=crossreid-small",
        "model.pretrained=bundled",
        f"model.height={HEIGHT}",
        f"model.width={WIDTH}",
        "cclnet.image_to_text=0",
        "cclnet.swap.when=never",
        f"cclnet.align.epochs={epochs}",
        "cclnet.align.evaluate_every=0",
        "evaluation.start=false",
        "evaluation.calibrate=false",
    ]
    local.train(configuration.load(Path("cclnet_sysu.yaml"), overrides), out, sys.argv)


def write_arrays(root: Path, out: Path) -> None:
    """The training images of both modalities as the authors' data/process.py leaves them."""
    from PIL import Image

    from reid_core.datasets import sysu
    from reid_core.types import Modality, Split

    data = sysu.read(root)
    split = Split(data.train.samples + data.val.samples)
    for name, modality in (("rgb", Modality.VISIBLE), ("ir", Modality.INFRARED)):
        samples = [split.samples[row] for row in split.rows(modality)]
        images = [
            np.array(
                Image.open(root / x.image)
                .convert("RGB")
                .resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
            )
            for x in samples
        ]
        np.save(out / f"train_{name}_resized_img.npy", np.stack(images))
        np.save(out / f"train_{name}_resized_label.npy", np.array([x.pid for x in samples]))
        np.save(out / f"train_{name}_resized_path.npy", np.array([x.image for x in samples]))


def train_theirs(checkout: Path, arrays: Path, out: Path, epochs: int) -> None:
    """Stage 0 by the authors' own loop."""
    sys.path.insert(0, str(checkout))
    from data.dataloader import Unlabeld_SYSUData  # type: ignore[import-not-found]
    from model import make_model_clip  # type: ignore[import-not-found]
    from torchvision import transforms
    from train import train_0stage  # type: ignore[import-not-found]
    from util.make_optimizer import make_optimizer_2stage  # type: ignore[import-not-found]
    from util.optim.lr_scheduler import WarmupMultiStepLR  # type: ignore[import-not-found]

    settings = yaml.safe_load((checkout / "config" / "config_sysu.yaml").read_text())
    settings |= {"data_path": f"{arrays}/", "pseudo_labels_path": f"{out}/", "workers": 2}
    settings |= {"img_h": HEIGHT, "img_w": WIDTH, "stage2_maxepochs": epochs, "eval_step": epochs}
    args = SimpleNamespace(**settings)

    weights = _small_weights()
    make_model_clip.load_clip_to_cpu = lambda name, height, width, stride: (
        make_model_clip.clip.build_model(dict(weights), height, width, stride)
    )
    plain = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.Resize((HEIGHT, WIDTH)),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    dataset = Unlabeld_SYSUData(args.data_path, plain)
    classes = [len(set(x)) for x in (dataset.train_color_label, dataset.train_thermal_label)]
    model = make_model_clip.build_model(args, *classes)
    # their neck has the width of RN50
    model.bottleneck = torch.nn.BatchNorm1d(weights["visual.attnpool.k_proj.weight"].shape[0])
    model.bottleneck.bias.requires_grad_(False)
    optimizer = make_optimizer_2stage(args, model)
    scheduler = WarmupMultiStepLR(
        optimizer,
        args.stage2_steps,
        args.stage2_gamma,
        args.stage2_warmup_factor,
        args.stage2_warmup_iters,
        args.stage2_warmup_method,
    )
    train_0stage.process_query_sysu = _end
    with contextlib.suppress(_EndedError):
        train_0stage.do_train_stage0(args, dataset, model, optimizer, scheduler)


class _EndedError(Exception):
    """All epochs are trained."""


def _end(*_: Any, **__: Any) -> None:
    raise _EndedError


def _small_weights() -> dict[str, torch.Tensor]:
    """The small CLIP under OpenAI's names, with the square grid of positions that they expect."""
    from reid_core.models import backbones

    weights = backbones.load("crossreid-small", "bundled").model.state_dict()
    name = "visual.attnpool.positional_embedding"
    width = weights[name].shape[1]
    weights[name] = torch.randn(_GRID**2 + 1, width) / width**0.5
    return weights


@contextlib.contextmanager
def cuda_is_the_cpu() -> Iterator[None]:
    """Calls that name the device "cuda" leave tensors and modules where they are."""
    to = torch.Tensor.to

    def stay(self: torch.Tensor, *where: Any, **how: Any) -> torch.Tensor:
        return self if where and str(where[0]).startswith("cuda") else to(self, *where, **how)

    torch.Tensor.to = stay  # type: ignore[assignment, method-assign]
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *_, **__: self  # type: ignore
    torch.cuda.synchronize = torch.cuda.empty_cache = lambda *_: None
    yield


def measure(side: str, arguments: argparse.Namespace, root: Path, folder: Path) -> Cost:
    """Two trainings of a side, each in a process tree of its own."""
    spent = []
    for epochs in arguments.epochs:
        before, began = _cpu_of_children(), perf_counter()
        words = ["--side", side, "--root", root, "--out", folder / f"{side}-{epochs}"]
        words += ["--epochs", epochs, "--checkout", arguments.checkout.resolve()]
        peak = run_module("benchmarks.authors", [str(word) for word in words])
        spent.append((perf_counter() - began, _cpu_of_children() - before, peak))
    (short_wall, short_cpu, _), (long_wall, long_cpu, peak) = spent
    between = arguments.epochs[1] - arguments.epochs[0]
    return Cost((long_wall - short_wall) / between, (long_cpu - short_cpu) / between, peak)


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Both sides, or one training of one side when started by `measure`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkout", type=Path, required=True)
    parser.add_argument("--identities", type=int, default=500)
    parser.add_argument("--epochs", type=int, nargs="+", default=[2, 5])
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.side:
        arguments.out.mkdir(parents=True)
        torch.set_num_threads(os.cpu_count() or 1)
        if arguments.side == "ours":
            train_ours(arguments.root, arguments.out, arguments.epochs[0])
            return
        with cuda_is_the_cpu():
            arrays = arguments.root.parent
            train_theirs(arguments.checkout, arrays, arguments.out, arguments.epochs[0])
        return
    from reid_core.datasets import synthetic

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = folder / "data"
        synthetic.write(
            root, num_identities=arguments.identities, seed=0, test_share=0.5, workers=2
        )
        write_arrays(root, folder)
        costs = {side: measure(side, arguments, root, folder) for side in SIDES}
    print("| one epoch | wall s | CPU s | peak MiB | CPU, times ours |\n|---|---|---|---|---|")
    for side, cost in costs.items():
        cells = [side, f"{cost.wall:.2f}", f"{cost.cpu:.2f}", f"{cost.peak / 2**20:.0f}"]
        print("| " + " | ".join([*cells, f"{cost.cpu / costs['ours'].cpu:.2f}"]) + " |")


if __name__ == "__main__":
    main()
