"""What is trained: the small CLIP from sentences, the small transformer from a teacher; the losses.

Shapes: B images, T sentences, V words, E joint embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid_core.models.backbones import Backbone
from reid_core.models.encoders import ImageEncoder
from reid_core.models.pooling import AttentionPool, ClassProjection
from reid_core.pretraining.batches import HEIGHT, WIDTH, Sample, Sampler, Settings
from reid_core.types import Modality


class Learner(nn.Module):
    """The CLIP in training and the word heads that are thrown away afterwards."""

    def __init__(self, clip: Backbone, *, word_rates: Tensor) -> None:
        super().__init__()
        self.encoder = ImageEncoder(clip, height=HEIGHT, width=WIDTH)
        self.encoder.to(memory_format=torch.channels_last)
        self.encoder.infrared_stem.requires_grad_(False)
        self.encoder.neck.requires_grad_(False)
        self.text = clip.text
        self.logit_scale = clip.model.get_parameter("logit_scale")
        widths = {
            "pooled": self.encoder.feature_dim,
            "image": clip.embed_dim,
            "text": clip.embed_dim,
        }
        self.norms = nn.ModuleDict(
            {name: nn.BatchNorm1d(width, affine=False) for name, width in widths.items()}
        )
        self.pooled_words = nn.Linear(self.encoder.feature_dim, len(word_rates))
        # One head for images and sentences: both must say "red coat" in the same direction.
        self.joint_words = nn.Linear(clip.embed_dim, len(word_rates))
        for head in (self.pooled_words, self.joint_words):
            # From the base rates on, every step goes into telling images apart.
            head.bias.data.copy_(torch.logit(word_rates, eps=1e-3))
            head.weight.data.mul_(0.3)

    def forward(self, sample: Sample) -> dict[str, Tensor]:
        """The terms of the loss, unweighted."""
        images = sample.images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16):
            features = self.encoder(images, None)
        image = F.normalize(features.projected.float(), dim=1)
        text = F.normalize(self._sentence_features(sample.tokens), dim=1)
        scale = self.logit_scale.exp().clamp(max=100)
        captioned, identities = sample.captioned, sample.identities
        pooled_words = self.pooled_words(self.norms["pooled"](features.pooled))
        image_words = self.joint_words(self.norms["image"](image))
        text_words = self.joint_words(self.norms["text"](text))
        return {
            "contrast": identity_contrast(
                scale * image @ text.T, sample.identities, sample.identities[captioned]
            ),
            "views_image": view_contrast(image, identities),
            "views_pooled": view_contrast(F.normalize(features.pooled, dim=1), identities),
            "words_pooled": word_loss(pooled_words, sample.words, sample.known),
            "words_image": word_loss(image_words, sample.words, sample.known),
            "words_text": word_loss(text_words, sample.words[captioned], sample.known[captioned]),
        }

    def loss(self, terms: dict[str, Tensor], settings: Settings) -> Tensor:
        """The weighted sum."""
        words = terms["words_pooled"] + terms["words_image"] + 0.3 * terms["words_text"]
        views = terms["views_image"] + terms["views_pooled"]
        return terms["contrast"] + settings.view_weight * views + settings.word_weight * words

    def draw(self, sampler: Sampler) -> Sample:
        """The next batch."""
        return sampler.draw()

    @torch.no_grad()
    def fold_scale(self, sample: Sample) -> None:
        """Scales both projections so that the plain product of two features is the trained logit.

        Prompt methods compare projected and text features without norm or temperature; they count
        on products of the size that CLIP's have.
        """
        length = float(self.logit_scale.exp()) ** 0.5
        image = self.encoder.project(sample.images, Modality.VISIBLE).norm(dim=1).mean()
        text = self.text.encode_text(sample.tokens).norm(dim=1).mean()
        assert isinstance(self.encoder.attnpool, AttentionPool)
        for weight in self.encoder.attnpool.c_proj.parameters():
            weight.mul_(length / image)
        self.text.text_projection.mul_(length / text)

    def _sentence_features(self, tokens: Tensor) -> Tensor:
        # Short sentences apart from long ones: half of the tokens would be padding.
        order = tokens.argmax(dim=1).argsort()
        return self.text.encode_text(tokens[order], chunk=16)[order.argsort()]


class Student(nn.Module):
    """A small vision transformer in training, which looks at what a trained teacher sees.

    From 12,000 images a transformer learns slowly: it has to find out that neighbors matter. So
    it is told, for every image, where the teacher's pooled and projected features lie, beside the
    words and the identities of the images. The text tower is the teacher's, unchanged.

    Reference: DeiT, Touvron et al., ICML 2021: a convolutional teacher for a transformer.
    """

    def __init__(self, clip: Backbone, teacher: Backbone, *, word_rates: Tensor) -> None:
        super().__init__()
        clip.text.load_state_dict(teacher.text.state_dict())
        scale = clip.model.get_parameter("logit_scale")
        scale.data.copy_(teacher.model.get_parameter("logit_scale"))
        self.encoder = ImageEncoder(clip, height=HEIGHT, width=WIDTH)
        self.encoder.infrared_stem.requires_grad_(False)
        self.encoder.neck.requires_grad_(False)
        self.text = clip.text.requires_grad_(False)
        self.logit_scale = scale.requires_grad_(False)
        self.teacher = ImageEncoder(teacher, height=HEIGHT, width=WIDTH).requires_grad_(False)
        width, wide = self.encoder.feature_dim, self.teacher.feature_dim
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.teacher_norm = nn.BatchNorm1d(wide, affine=False)
        self.to_teacher = nn.Linear(width, wide)
        self.pooled_words = nn.Linear(width, len(word_rates))
        self.pooled_words.bias.data.copy_(torch.logit(word_rates, eps=1e-3))
        self.pooled_words.weight.data.mul_(0.3)

    def forward(self, sample: Sample) -> dict[str, Tensor]:
        """The terms of the loss, unweighted."""
        with torch.autocast(sample.images.device.type, torch.bfloat16):
            features = self.encoder(sample.images, None)
            with torch.no_grad():
                shown = self.teacher.eval()(sample.images, None)
        pooled = self.norm(features.pooled)
        words = self.pooled_words(pooled)
        expected = self.teacher_norm(shown.pooled)
        return {
            "views_pooled": view_contrast(F.normalize(features.pooled, dim=1), sample.identities),
            "words_pooled": word_loss(words, sample.words, sample.known),
            "match_pooled": _apart(self.to_teacher(pooled), expected),
            "match_projected": _apart(features.projected.float(), shown.projected.float()),
        }

    def loss(self, terms: dict[str, Tensor], settings: Settings) -> Tensor:
        """The weighted sum."""
        match = terms["match_pooled"] + terms["match_projected"]
        return (
            settings.word_weight * terms["words_pooled"]
            + settings.view_weight * terms["views_pooled"]
            + settings.match_weight * match
        )

    def draw(self, sampler: Sampler) -> Sample:
        """The next batch, without sentences: nothing here reads."""
        return sampler.draw(captioned=False)

    @torch.no_grad()
    def fold_scale(self, sample: Sample) -> None:
        """Makes projected features as long as the teacher's, whose texts they are compared with."""
        own, expected = (
            one.project(sample.images, Modality.VISIBLE).norm(dim=1).mean()
            for one in (self.encoder, self.teacher)
        )
        assert isinstance(self.encoder.attnpool, ClassProjection)
        self.encoder.attnpool.weight.mul_(expected / own)


def _apart(x: Tensor, y: Tensor) -> Tensor:
    """1 - cos of rows (B, D), mean."""
    return 1 - F.cosine_similarity(x, y).mean()


def identity_contrast(similarity: Tensor, pictured: Tensor, captioned: Tensor) -> Tensor:
    """InfoNCE both ways in which every sentence about an identity fits each of their images.

    Args:
        similarity: (B, T) scaled similarities, images x sentences.
        pictured, captioned: (B,) and (T,) int64, the identities; everyone stands in both.
    """
    same = (pictured[:, None] == captioned).float()
    by_image = F.cross_entropy(similarity, same / same.sum(dim=1, keepdim=True))
    by_sentence = F.cross_entropy(similarity.T, same.T / same.T.sum(dim=1, keepdim=True))
    return 0.5 * (by_image + by_sentence)


def view_contrast(image: Tensor, identities: Tensor, *, temperature: float = 0.1) -> Tensor:
    """InfoNCE between images: the others of the same identity against all others.

    Args:
        image: (B, E) unit rows.
        identities: (B,) int64, everyone at least twice.
    """
    itself = torch.eye(len(identities), dtype=torch.bool)
    same = ((identities[:, None] == identities) & ~itself).float()
    logits = (image @ image.T / temperature).masked_fill(itself, -1e4)
    return F.cross_entropy(logits, same / same.sum(dim=1, keepdim=True))


def word_loss(logits: Tensor, words: Tensor, known: Tensor) -> Tensor:
    """Binary cross entropy over the words (B, V) whose truth is known, mean over those."""
    losses = F.binary_cross_entropy_with_logits(logits, words, reduction="none")
    return (losses * known).sum() / known.sum()
