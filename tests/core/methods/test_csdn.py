"""CSDN as the machinery sees it: settings, schedules, plans, sizes, the authors' checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reid_core.augmentation import Augmentation
from reid_core.method import BetweenEpochs, Opening
from reid_core.methods.csdn import METHOD, opening, optimization, stages
from reid_core.methods.csdn import between_epochs as csdn
from reid_core.methods.csdn.images import Descriptor, ImageModel, build_encoder
from reid_core.methods.csdn.released import module_state
from reid_core.methods.csdn.settings import INPUTS, Config
from reid_core.models import backbones
from reid_core.types import Modality

SIZE = {"height": 64, "width": 32}


REFERENCE = Config(profile="reference")


@pytest.fixture(scope="module")
def small() -> backbones.Backbone:
    loaded = backbones.load(backbones.SMALL, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # residual branches start at zero, statistics at 0 and 1: move both
        for name, tensor in loaded.visual.state_dict().items():
            if "bn" in name and tensor.is_floating_point():
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return loaded


@pytest.fixture(scope="module")
def published() -> ImageModel:
    """Stage 3 of RN50 at 288 x 144 for SYSU-MM01's 395 identities, without storage."""
    with torch.device("meta"):
        resnet50 = backbones.load("RN50")
        encoder = build_encoder(Config(profile="reference"), resnet50, height=288, width=144)
    return ImageModel(encoder, 395, seed=0).to("meta")


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# Settings ----------------------------------------------------------------------------------------


def test_profiles_and_variants_choose_defaults_that_explicit_keys_override() -> None:
    clean, reference = Config(), Config(profile="reference", variant="head")
    assert (clean.stem_relu, clean.pairing, clean.triplet, clean.pool) == (
        "all", "separate", "stable", "all",
    )  # fmt: skip
    assert (reference.stem_relu, reference.pairing, reference.triplet, reference.pool) == (
        "last", "joint", "reference", "sample",
    )  # fmt: skip
    assert (clean.anchor_dropout, reference.anchor_dropout) == (False, True)
    assert (clean.msel, clean.flip_test) == (0.0, False)
    assert (reference.msel, reference.flip_test) == (1.0, True)
    mixed = Config(profile="reference", pairing="separate")
    assert (mixed.pairing, mixed.pool) == ("separate", "sample")
    assert Config(**mixed.model_dump()) == mixed


def test_unknown_profiles_and_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="profile"):
        Config(profile="refrence")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lambda4"):
        Config(lambda4=1)  # type: ignore[call-arg]


def test_published_loss_weights() -> None:
    assert (Config().lambda1, Config().lambda2, Config().lambda3) == (0.15, 0.05, 0.10)


@pytest.mark.parametrize(
    ("anchors", "expected"),
    [
        ("none", ("images",)),
        ("shared", ("prompts", "images")),
        ("own", ("prompts", "images")),
        ("mean", ("prompts", "images")),
        ("fusion", ("prompts", "fusion", "images")),
    ],
)
def test_only_stages_that_hand_something_on_are_run(anchors, expected) -> None:
    assert METHOD.stages(Config(anchors=anchors)) == expected
    assert METHOD.stages(Config(anchors=anchors, lambda2=0, lambda3=0)) == ("images",)


def test_settings_without_effect_are_named() -> None:
    assert METHOD.check(Config()) == []
    (warning,) = METHOD.check(Config(anchors="none", lambda2=0.1))
    assert "csdn.lambda2" in warning
    assert "anchors=none" in warning
    assert "dropout" in METHOD.check(Config(anchors="own", dropout=0.2))[0]
    resumed = Config(**Config(anchors="none").model_dump())
    assert METHOD.check(resumed) == []
    assert "released" in METHOD.check(Config(profile="reference", stem_relu="all"))[0]


@pytest.mark.parametrize("stage", ["prompts", "fusion"])
def test_published_learning_rates_of_the_text_stages(stage: str) -> None:
    published = {
        0: 1e-5, 1: 6.8e-5, 2: 1.26e-4, 3: 1.84e-4, 4: 2.42e-4,
        5: 2.9491e-4, 10: 2.7997e-4, 30: 1.5050e-4, 59: 1.2049e-6,
    }  # fmt: skip
    for epoch, lr in published.items():
        assert optimization.learning_rate(Config(), stage, epoch) == pytest.approx(lr, rel=1e-4)


def test_published_learning_rates_of_the_images() -> None:
    published = {
        0: 3e-6, 1: 3.27e-5, 5: 1.515e-4, 9: 2.703e-4, 10: 3e-4,
        39: 3e-4, 40: 3e-5, 69: 3e-5, 70: 3e-6, 119: 3e-6,
    }  # fmt: skip
    for epoch, lr in published.items():
        assert optimization.learning_rate(Config(), "images", epoch) == pytest.approx(lr)


# Views and plans ---------------------------------------------------------------------------------


def test_two_visible_views_and_one_infrared_none_of_them_gray_by_luma() -> None:
    views = METHOD.augmentations(Config(), Augmentation(grayscale=0.5, pad=3))
    assert [a.channels for a in views[Modality.VISIBLE]] == ["keep", "exchange"]
    assert [a.channels for a in views[Modality.INFRARED]] == ["adapt"]
    assert {(a.grayscale, a.pad) for group in views.values() for a in group} == {(0.0, 3)}


def cycled(visible: int, infrared: int, num_identities: int) -> dict[Modality, np.ndarray]:
    sizes = zip(INPUTS, (visible, infrared), strict=True)
    return {m: np.arange(n, dtype=np.int64) % num_identities for m, n in sizes}


@pytest.mark.parametrize(
    ("sizes", "text_steps", "image_steps"),
    [((22_258, 11_909, 395), 41_760, 83_520), ((2_060, 2_060, 206), 3_900, 7_800)],
)
@pytest.mark.parametrize("pool", ["all", "sample"])
def test_published_numbers_of_steps(small, pool, sizes, text_steps, image_steps) -> None:
    config, identities = Config(pool=pool), cycled(*sizes)
    visible, infrared = stages.pairs(config, identities, batch_size=32, seed=0, epoch=0)
    assert visible.shape == infrared.shape == (text_steps // 60, 32)
    encoder = build_encoder(config, small, **SIZE)
    texts = {f"texts.{m}": torch.zeros(sizes[2], 4) for m in INPUTS}
    fusing = stages.Fusing(config, encoder, identities=identities, handed=texts, seed=0)
    fusing.take({m: torch.zeros(len(identities[m]), 4) for m in INPUTS})
    rows = [batch.rows for batch in fusing.batches(0, lambda n: slice(0, n))]
    assert len(rows) * config.fusion.epochs == text_steps
    assert {len(batch) for batch in rows} == {64}
    epoch = csdn.begin_epoch(config, BetweenEpochs("images", 0, 0), identities)
    assert epoch.rows[Modality.VISIBLE].shape == (image_steps // 120, 32)


def test_every_batch_shows_the_same_identities_in_both_modalities() -> None:
    identities = cycled(300, 200, 20)
    epoch = csdn.begin_epoch(Config(), BetweenEpochs("images", 1, 5), identities)
    visible, infrared = (identities[m][epoch.rows[m]] for m in INPUTS)
    assert np.array_equal(visible, infrared)
    assert all(len(set(batch)) == 8 for batch in visible)
    again = csdn.begin_epoch(Config(), BetweenEpochs("images", 1, 5), identities)
    later = csdn.begin_epoch(Config(), BetweenEpochs("images", 2, 5), identities)
    assert all(np.array_equal(epoch.rows[m], again.rows[m]) for m in INPUTS)
    assert not np.array_equal(epoch.rows[Modality.VISIBLE], later.rows[Modality.VISIBLE])


def test_all_images_are_shown_by_all_and_few_by_one_sample() -> None:
    identities = cycled(600, 600, 60)
    seen = {}
    for pool in ("all", "sample"):
        config = Config(pool=pool)
        rows = [
            stages.pairs(config, identities, batch_size=32, seed=0, epoch=e)[0] for e in range(3)
        ]
        seen[pool] = len(np.unique(np.concatenate(rows)))
    assert seen["all"] == 600
    assert 0.5 < seen["sample"] / 600 < 0.75


def test_the_fusion_samples_anew_and_few_identities_are_in_neither_sample() -> None:
    """RegDB's size: of 206 identities about 16 are missing in one sample, about 1 in both."""
    identities = cycled(2060, 2060, 206)
    config = Config(pool="sample")

    def identities_drawn(stage: str, seed: int) -> set[int]:
        rows = stages.pairs(config, identities, batch_size=32, seed=seed, epoch=0, stage=stage)
        return set(identities[Modality.VISIBLE][rows[0]].ravel().tolist())

    seen = {
        stage: [identities_drawn(stage, seed) for seed in range(10)]
        for stage in ("prompts", "fusion")
    }
    missing = [206 - len(one) for one in seen["prompts"]]
    in_neither = [206 - len(a | b) for a, b in zip(*seen.values(), strict=True)]
    assert 12 < np.mean(missing) < 20
    assert np.mean(in_neither) < 3
    everyone = [
        stages.pairs(Config(), identities, batch_size=32, seed=0, epoch=0, stage=stage)[0]
        for stage in ("prompts", "fusion")
    ]
    np.testing.assert_array_equal(*everyone)


# Sizes -------------------------------------------------------------------------------------------


def test_published_parameter_counts(published: ImageModel) -> None:
    encoder = published.encoder
    assert count(encoder.visible_stem) == count(encoder.infrared_stem) == 28_768
    assert count(encoder.trunk) == 23_498_496
    assert count(encoder.attnpool) == 15_021_056
    assert encoder.attnpool.positional_embedding.shape == (163, 2048)
    assert count(published) == 39_796_673
    # with the text tower, two sets of words and the fusion: all of CSDN
    assert count(published) + 38_393_344 + 2 * 395 * 4 * 512 + 4_198_400 == 84_006_337
    assert Descriptor(encoder, flip=False).feature_dim == 3072
    assert Descriptor(encoder, flip=True).feature_dim == 6144


def test_published_optimizer_of_the_images(published: ImageModel) -> None:
    optimizer = optimization.optimizer(Config(), "images", published)
    towers, heads = optimizer.param_groups
    assert len(towers["params"]) + len(heads["params"]) == 190
    assert len(heads["params"]) == 7
    assert (towers["lr"], heads["lr"]) == (3e-4, 6e-4)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {5e-4}
    assert type(optimizer) is torch.optim.Adam


@pytest.mark.parametrize(("stage", "tensors"), [("prompts", 2), ("fusion", 8)])
def test_published_optimizers_of_the_texts(small, stage: str, tensors: int) -> None:
    config, identities = Config(), cycled(40, 40, 10)
    handed = {f"texts.{m}": torch.zeros(10, 128) for m in INPUTS}
    opened = opening.open_stage(
        config, stage, Opening(small, **SIZE, identities=identities, handed=handed, seed=0)
    )
    optimizer = opened.optimizer()
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(trained) == tensors
    assert {group["lr"] for group in optimizer.param_groups} == {3e-4}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-4}
    if stage == "prompts":
        assert [p.shape for p in trained] == [(10, 4, small.text.width)] * 2


# The authors' checkpoints ------------------------------------------------------------------------


def released_names() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the public code's image side, texts and fusion, RN50, 395 identities."""

    def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
        vectors = ("weight", "bias", "running_mean", "running_var")
        return {f"{name}.{v}": (width,) for v in vectors} | {f"{name}.num_batches_tracked": ()}

    result: dict[str, tuple[int, ...]] = {}
    for stem in ("image_encoder1", "image_encoder2"):
        for i, (wide, deep) in enumerate(((32, 3), (32, 32), (64, 32))):
            result |= {f"{stem}.{2 * i}.weight": (wide, deep, 3, 3)}
            result |= norm(f"{stem}.{2 * i + 1}", wide)
    into = 64
    for layer, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for block in range(blocks):
            at = f"image_encoder.{layer}.{block}"
            shapes = ((width, into, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1))
            for i, shape in enumerate(shapes, start=1):
                result |= {f"{at}.conv{i}.weight": shape} | norm(f"{at}.bn{i}", shape[0])
            if block == 0:
                result |= {f"{at}.downsample.0.weight": (4 * width, into, 1, 1)}
                result |= norm(f"{at}.downsample.1", 4 * width)
            into = 4 * width
    result["attnpool.positional_embedding"] = (163, 2048)
    for name, wide in (("k", 2048), ("q", 2048), ("v", 2048), ("c", 1024)):
        result |= {
            f"attnpool.{name}_proj.weight": (wide, 2048),
            f"attnpool.{name}_proj.bias": (wide,),
        }
    result |= {"classifier.GEM.p": (1,), "classifier.classifier.weight": (395, 2048)}
    result |= norm("classifier.BN", 2048) | norm("classifier2.BN", 1024)
    result["classifier2.classifier.weight"] = (395, 1024)
    for learner in ("prompt_learner1", "prompt_learner2"):
        result |= {f"{learner}.cls_ctx": (395, 4, 512), f"{learner}.token_prefix": (1, 5, 512)}
        result[f"{learner}.token_suffix"] = (1, 68, 512)
    for name in ("embedding_q", "embedding_k", "embedding_v", "embedding_common"):
        result |= {f"attention_fusion.{name}.0.weight": (1024, 1024)}
        result |= {f"attention_fusion.{name}.0.bias": (1024,)}
    return result | {"text_encoder.positional_embedding": (77, 512)}


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_released_checkpoints_fill_every_tensor(published: ImageModel, wrapper: str) -> None:
    state = {
        wrapper + name: torch.empty(shape, device="meta")
        for name, shape in released_names().items()
    }
    loaded = published.load_state_dict(module_state(REFERENCE, state), strict=False)  # and shapes
    assert (loaded.missing_keys, loaded.unexpected_keys) == ([], [])


def test_other_checkpoints_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"backbone\.conv1"):
        module_state(
            REFERENCE, {"backbone.conv1": torch.zeros(1), "attnpool.k_proj.bias": torch.ones(1)}
        )


def test_an_incomplete_checkpoint_and_another_profile_are_refused() -> None:
    whole = {name: torch.empty(shape, device="meta") for name, shape in released_names().items()}
    partial = {name: x for name, x in whole.items() if not name.startswith("image_encoder.3")}
    with pytest.raises(ValueError, match=r"incomplete.*image_encoder\.3"):
        module_state(REFERENCE, partial)
    with pytest.raises(ValueError, match=r"csdn\.profile=clean.*take csdn\.profile=reference"):
        module_state(Config(), whole)


def test_a_state_without_all_weights_names_what_is_missing(small) -> None:
    config = Config(profile="reference")
    own = build_encoder(config, small, **SIZE).state_dict()
    state = {f"encoder.{name}": x for name, x in own.items()}
    del state["encoder.trunk.layer2.0.conv1.weight"]
    with pytest.raises(ValueError, match=r"(?s)whole image encoder.*layer2\.0\.conv1"):
        opening.load_encoder(config, small, **SIZE, state=state)


def as_released(name: str) -> str:
    """Our name of a stage-3 tensor -> the public code's."""
    for stem, number in (("visible_stem", 1), ("infrared_stem", 2)):
        for i in range(3):
            for j, kind in enumerate(("conv", "bn")):
                old = f"encoder.{stem}.{kind}{i + 1}."
                name = name.replace(old, f"image_encoder{number}.{2 * i + j}.")
    for layer in range(4):
        name = name.replace(f"encoder.trunk.layer{layer + 1}.", f"image_encoder.{layer}.")
    name = name.replace("encoder.attnpool", "attnpool").replace("encoder.gem", "classifier.GEM")
    name = name.replace("projected_neck", "classifier2.BN").replace("encoder.neck", "classifier.BN")
    if name.startswith("classifier.weight"):
        return f"classifier.{name}"
    return name.replace("projected_classifier", "classifier2.classifier")


def test_a_released_checkpoint_gives_the_descriptors_that_were_saved(small) -> None:
    config = Config(profile="reference", variant="head")
    encoder = build_encoder(config, small, **SIZE)
    with torch.no_grad():
        encoder.infrared_stem.conv1.weight.mul_(-1.0)
        encoder.gem.p.fill_(2.5)
    model = ImageModel(encoder, 7, seed=3).eval()
    saved = {f"module.{as_released(name)}": x for name, x in model.state_dict().items()}
    loaded = opening.load_encoder(config, small, **SIZE, state=module_state(REFERENCE, saved))
    own = Descriptor(encoder, flip=True).eval()
    images = torch.randint(256, (3, 3, 64, 32), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    with torch.no_grad():
        for m in INPUTS:
            torch.testing.assert_close(loaded.embed(images, m), own.embed(images, m))
    with pytest.raises(ValueError, match="images"):
        opening.load_encoder(config, small, **SIZE, state={"query.weight": Tensor()})
