"""CLIP with weights from anywhere, and its text tower, which takes token embeddings.

With `towers` the only files that know how open_clip builds a model. Shapes: C texts, L tokens,
W text width, E joint embedding.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file
from torch import Tensor, nn

from reid_core.transforms import IMAGENET_MEAN, IMAGENET_STD

ASSETS = Path(__file__).resolve().parents[1] / "assets"
SMALL = "crossreid-small"
# Buffers that OpenAI's archives carry beside the weights; no other checkpoint has them.
_OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")


class TextTower(nn.Module):
    """CLIP's text transformer, from token embeddings to the joint space.

    Shares its parameters with the model it was taken from.
    """

    attn_mask: Tensor

    def __init__(self, model: open_clip.CLIP) -> None:
        """Takes the text half out of `model`."""
        super().__init__()
        self.token_embedding: nn.Embedding = model.token_embedding
        self.positional_embedding: nn.Parameter = model.positional_embedding
        self.transformer: nn.Module = model.transformer
        self.ln_final: nn.Module = model.ln_final
        self.text_projection: nn.Parameter = model.text_projection
        self.register_buffer("attn_mask", model.attn_mask, persistent=False)

    @property
    def width(self) -> int:
        """W, the width of a token embedding."""
        return self.token_embedding.embedding_dim

    @property
    def context_length(self) -> int:
        """Tokens of a padded sentence: 77."""
        return self.positional_embedding.shape[0]

    @property
    def embed_dim(self) -> int:
        """E, the width of a text feature."""
        return self.text_projection.shape[1]

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids (C, 77) int64, zero padded, on the tower's device."""
        ids = _tokenizer()(texts, context_length=self.context_length)
        return ids.to(self.positional_embedding.device)

    def encode_text(self, ids: Tensor, *, chunk: int = 256) -> Tensor:
        """Features (C, E), not normalized, of token ids (C, 77); the EOT is the largest id."""
        # Padding behind the last EOT is cut before the lookup: it cannot matter.
        eot = ids.argmax(dim=-1)
        return self.encode_prompts(
            self.token_embedding(ids[:, : int(eot.max()) + 1]), eot, chunk=chunk
        )

    def encode_trimmed(self, ids: Tensor) -> Tensor:
        """`encode_text` of ids (C, L) that end with the longest sentence, see `text.trimmed`.

        Nothing is asked of the device, and all sentences pass at once.
        """
        return self._encode(self.token_embedding(ids), ids.argmax(dim=-1), ids.shape[1])

    def encode_prompts(self, embeddings: Tensor, eot: Tensor | int, *, chunk: int = 256) -> Tensor:
        """Features of sentences that are given as token embeddings.

        Attention is causal and only the EOT position is read, so what stands behind a chunk's
        largest EOT is never computed: the result is exactly that of all 77 positions.

        Args:
            embeddings: (C, L, W) token embeddings without positions, L > eot; may carry gradients.
            eot: position of the EOT token, (C,) int64 or one number for all.
            chunk: sentences per pass; bounds memory where no gradient is needed.

        Returns:
            (C, E) text features, not normalized.

        Raises:
            ValueError: an EOT position lies outside the L tokens.
        """
        if isinstance(eot, int):  # known here: no device is asked
            ends = torch.full((len(embeddings),), eot, device=embeddings.device)
            last = [eot] * len(ends.split(chunk))
        else:
            ends = eot
            last = [int(at.max()) if len(at) else -1 for at in ends.split(chunk)]
        if len(ends) and max(last) >= embeddings.shape[1]:
            raise ValueError(
                f"the EOT token stands at position {max(last)}, but only "
                f"{embeddings.shape[1]} token embeddings were given"
            )
        parts = zip(embeddings.split(chunk), ends.split(chunk), last, strict=True)
        return torch.cat([self._encode(rows, at, end + 1) for rows, at, end in parts])

    def _encode(self, embeddings: Tensor, ends: Tensor, length: int) -> Tensor:
        """Of sentences whose last EOT stands at `length` - 1."""
        x = embeddings[:, :length].to(self.positional_embedding.dtype)
        x = x + self.positional_embedding[:length]
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])
        at_end = x[torch.arange(len(x), device=x.device), ends]
        return self.ln_final(at_end) @ self.text_projection


@dataclass(frozen=True)
class Clip:
    """A loaded CLIP.

    Attributes:
        name: architecture as open_clip names it, or "crossreid-small".
        model: the whole `open_clip.CLIP`; `visual` and `text` share its parameters.
        text: its text tower.
    """

    name: str
    model: open_clip.CLIP
    text: TextTower

    @property
    def visual(self) -> nn.Module:
        """The image tower as open_clip builds it."""
        return self.model.visual

    @property
    def embed_dim(self) -> int:
        """E, the width of the joint space."""
        return self.text.embed_dim

    @property
    def quick_gelu(self) -> bool:
        """Whether its transformers use QuickGELU, which no weight tells."""
        return any(isinstance(module, QuickGELU) for module in self.model.modules())

    @property
    def pixel_mean(self) -> tuple[float, float, float]:
        """Mean RGB, of 1, that the weights were trained with."""
        return IMAGENET_MEAN if self.name == SMALL else open_clip.OPENAI_DATASET_MEAN

    @property
    def pixel_std(self) -> tuple[float, float, float]:
        """Standard deviation of RGB, of 1, that the weights were trained with."""
        return IMAGENET_STD if self.name == SMALL else open_clip.OPENAI_DATASET_STD


def load(
    name: str, pretrained: str | None = None, *, seed: int = 0, quick_gelu: bool = False
) -> Clip:
    """Builds a CLIP and fills it with weights, completely or not at all; float32, eval mode.

    Args:
        name: any open_clip model with CLIP's own text tower, or "crossreid-small".
        pretrained: None (random weights), "bundled" (the weights that ship with crossreid-small),
            an open_clip tag such as "openai" (downloaded), or a local file: plain state dict,
            open_clip checkpoint, safetensors, or OpenAI's JIT archive. OpenAI's own files and
            tags bring QuickGELU with them; any other file that needs it takes the name that
            says so, such as "RN50-quickgelu".
        seed: of the random weights; the global random state is left alone.
        quick_gelu: what the transformers are built with where neither name nor weights say it.

    Raises:
        ValueError: unknown name, missing or unreadable file, or weights of another
            architecture, with the missing, unexpected and misshapen keys listed.
    """
    config = _model_config(name)
    if pretrained is None:
        return _build(name, config, quick_gelu=quick_gelu, seed=seed)
    path, of_tag = _locate(name, pretrained)
    state, from_openai = _read_state(path)
    clip = _build(name, config, quick_gelu=quick_gelu or of_tag or from_openai, seed=seed)
    _fill(clip, state, path)
    return clip


@cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


def _model_config(name: str) -> dict[str, Any]:
    if SMALL not in open_clip.list_models():
        open_clip.add_model_config(ASSETS / f"{SMALL}.json")
    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), n=4, cutoff=0.4)
        raise ValueError(f"unknown CLIP model {name!r}; close names: {', '.join(near) or 'none'}")
    config = open_clip.get_model_config(name)
    text = config["text_cfg"]
    if config.pop("custom_text", False) or "hf_model_name" in text or "multimodal_cfg" in config:
        raise ValueError(
            f"{name!r} has no text tower of CLIP's own kind (causal, read at EOT), which prompts "
            f"need; take RN50, ViT-B-16, {SMALL} or another plain CLIP"
        )
    return config


def _build(name: str, config: dict[str, Any], *, quick_gelu: bool, seed: int) -> Clip:
    settings = config | {"quick_gelu": quick_gelu or config.get("quick_gelu", False)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(**settings)
    return Clip(name=name, model=model.eval(), text=TextTower(model).eval())


def _locate(name: str, pretrained: str) -> tuple[Path, bool]:
    """The weight file and whether its tag says that it needs QuickGELU."""
    if pretrained == "bundled":
        if name != SMALL:
            raise ValueError(f"'bundled' weights exist for {SMALL!r} only, not for {name!r}")
        return ASSETS / f"{SMALL}.pt", False
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained in tags:
        source = open_clip.get_pretrained_cfg(name, pretrained)
        try:
            path = open_clip.download_pretrained(source)
        except Exception as error:  # each hub client raises its own kinds
            raise ValueError(
                f"could not download the weights {pretrained!r} of {name!r}: {error}. Download "
                f"them elsewhere and give the path of the file as `pretrained`"
            ) from error
        return Path(path), bool(source.get("quick_gelu", False))
    path = Path(pretrained).expanduser()
    if not path.is_file():
        raise ValueError(
            f"no weight file at {path}; expected a state dict, an open_clip checkpoint or OpenAI's "
            f"JIT archive of {name!r}. Give an existing path, or one of the tags that open_clip "
            f"downloads: {', '.join(tags) or 'none for this model'}"
        )
    return path, False


def _read_state(path: Path) -> tuple[dict[str, Tensor], bool]:
    """Reads any kind of weight file; True beside it where the weights are OpenAI's own."""
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            try:
                with warnings.catch_warnings():  # the format is old, and OpenAI's
                    warnings.simplefilter("ignore", FutureWarning)
                    content = torch.jit.load(path, map_location="cpu").state_dict()
            except RuntimeError:  # no JIT archive
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors each raise their own kinds
        raise ValueError(f"{path} is not a readable weight file: {error}") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(torch.is_tensor(v) for v in content.values()):
        raise ValueError(f"{path} holds no state dict (names -> tensors)")
    state = {key.removeprefix("module."): value for key, value in content.items()}
    marks = [state.pop(mark, None) for mark in _OPENAI_MARKS]
    return state, any(mark is not None for mark in marks)


def _fill(clip: Clip, state: dict[str, Tensor], path: Path) -> None:
    """Loads every key or raises; half-precision weights become float32."""
    wanted = clip.model.state_dict()
    # Counters that no computation here reads; older files lack them.
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in wanted]
    misshapen = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in wanted
        if k in state and state[k].shape != wanted[k].shape
    ]
    if missing or unexpected or misshapen:
        raise ValueError(
            f"{path} does not hold the weights of {clip.name!r}: "
            f"missing: {_listed(missing)}; unexpected: {_listed(unexpected)}; "
            f"wrong shape: {_listed(misshapen)}. Name the architecture that the file was made for, "
            f"or take one of the tags that open_clip downloads: "
            f"{_listed(open_clip.list_pretrained_tags_by_model(clip.name))}"
        )
    clip.model.load_state_dict(state, strict=False)


def _listed(names: list[str], *, limit: int = 8) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + rest
