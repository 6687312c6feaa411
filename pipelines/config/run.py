"""A run's configuration: YAML and key=value overrides -> one validated, immutable object.

An unknown key is an error that names the valid ones; a file holds only what differs from the
defaults. Those of a method's section are its paper's where one is known; those of `model` and
`augmentation` are CCLNet's, and the recipes of the other methods set their own.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import yaml
from pydantic import BaseModel, Field, ValidationError, create_model, field_validator
from pydantic_core import ErrorDetails

from pipelines.config import files
from pipelines.config.files import Tree
from pipelines.config.overrides import AS_TEXT, left_out, put, split_override
from pipelines.config.sections import AugmentationConfig, DataConfig, ModelConfig, Section, named
from pipelines.config.trainer import EvaluationConfig, RayConfig, TrainerConfig
from pipelines.errors import UserError
from pipelines.storage.files import Json
from reid_core.methods import DEFAULT, METHODS

log = logging.getLogger(__name__)
_LARGEST = {
    "lr": 10,
    "epochs": 100_000,
    "batches_per_epoch": 1_000_000,
    "clusters_per_batch": 100_000,
    "instances": 10_000,
    "batch_size": 1_000_000,
    "batches_per_block": 100_000,
    "pad": 512,
    "height": 4096,
    "width": 4096,
    "barrier_timeout_s": 30 * 86400,
    "checkpoint_every": 30 * 86400,
    "num_workers": 100_000,
    "cpus_per_worker": 4096,
    "embed_batch": 1_000_000,
    "cache_bytes": 2**50,
}
# Where data lies, and what it is allowed to be.
_PLACES = {"root", "extra_roots", "allow_http", "max_unreadable"}
# Files and checkpoints of version 0.1 say these.
_RENAMED = {
    "optimiser": "optimizer",
    "recompute": "activation_checkpointing",
    "accumulate": "gradient_accumulation",
    "neighbours": "neighbors",
    "centred": "centered",
}


Overrides: TypeAlias = "Mapping[str, Json | Path] | Sequence[str]"
"""{"data.root": "/data/SYSU-MM01", ...}, or texts "key=value" as on the command line."""


if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]


class _Before(Section):
    """Keys of a run in front of the methods' sections."""

    method: MethodName = DEFAULT
    seed: int = Field(0, ge=0, lt=2**31)
    start_from: Annotated[Path | None, named("a beginning without a checkpoint")] = None
    data: DataConfig
    model: ModelConfig = ModelConfig()
    augmentation: AugmentationConfig = AugmentationConfig()

    @field_validator("start_from")
    @classmethod
    def _absolute(cls, start_from: Path | None) -> Path | None:
        """Workers have working directories of their own."""
        return start_from and start_from.absolute()


if TYPE_CHECKING:  # a method's section has no type here: nothing in `pipelines` may name one
    _WithMethods = _Before
else:
    _sections = {name: (method.config, method.config()) for name, method in METHODS.items()}
    _WithMethods = create_model("_WithMethods", __base__=_Before, **_sections)


class RunConfig(_WithMethods):
    """One training run.

    Each method of `METHODS` has a section of its name, made from its `Method.config`.

    Attributes:
        method: whose section below is used.
        seed: of everything random.
        start_from: checkpoint of a finished stage, as a run leaves them in its folder "stages".
            Its stage and those before it are taken as done, with what they hand on; a stage that
            has more epochs here goes on.
    """

    trainer: TrainerConfig = TrainerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    ray: RayConfig = RayConfig()

    @property
    def settings(self) -> BaseModel:
        """The settings of this run's method."""
        settings: BaseModel = getattr(self, self.method)
        return settings

    def identity(self) -> Tree:
        """Everything that decides the result of a run; a resumed run must agree in it.

        Not where the images lie: a data set may be moved, and its rows are guarded by name
        (`data.sample_list`). Nor what only allows: so many broken images, or places of others.
        """
        result = {key: x for key, x in self.used().items() if key not in ("ray", "trainer")}
        decisive = {
            "precision",
            "allow_tf32",
            "gradient_compression",
            "gradient_accumulation",
            "search",
            "strict",
        }
        if self.trainer.strict:
            decisive.add("shards")
        result["data"] = self.data.model_dump(mode="json", exclude=_PLACES | {"cache_bytes"})
        result["evaluation"] = self.evaluation.model_dump(mode="json", exclude={"calibrate"})
        result["trainer"] = self.trainer.model_dump(mode="json", include=decisive)
        return result

    def used(self) -> Tree:
        """Plain values of every section but those of other methods."""
        return self.model_dump(mode="json", exclude=METHODS.keys() - {self.method})


def load(path: Path, overrides: Overrides = ()) -> RunConfig:
    """Read a configuration file and apply overrides, later ones winning.

    Args:
        path: a YAML file, or the name of one of the recipes in tune_configs.
        overrides: such as "data.root=/data/SYSU-MM01" or "cclnet.align.epochs=3", whose values are
            YAML, but for those of paths; or a mapping of such keys to values.

    Raises:
        UserError: no such file, broken YAML, an unknown key, a value of the wrong kind, overrides
            that are neither a mapping nor a list.
    """
    if isinstance(overrides, str) or not isinstance(overrides, (Mapping, Sequence)):
        raise UserError(f"overrides={overrides!r}: give a list of key=value, or a mapping")
    if not all(isinstance(key, str) for key in overrides):
        raise UserError(f"overrides={overrides!r}: keys are texts, such as data.root")
    path = files.find_recipe(path)
    tree = files.read(path, as_text=AS_TEXT)
    if tree.keys() & {"base", "space", "objective"}:
        raise UserError(f"{path} is a search file: `crossreid tune {path}` runs it")
    return overridden(tree, overrides, source=str(path))


def overridden(
    tree: Tree, overrides: Mapping[str, Json | Path] | Sequence[str], *, source: str
) -> RunConfig:
    """A nested mapping, which overrides change in place, -> RunConfig; see `load`."""
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(split_override, overrides)
    for key, value in pairs:
        if lost := left_out(tree, key, value):
            log.warning(
                "%s={...} stands in place of the whole section: %s of %s are forgotten, for their "
                "defaults; %s.KEY=VALUE changes one key alone",
                *(key, ", ".join(lost), source, key),
            )
        put(tree, key, value, said=f"override {key}={value!r}")
    method = tree.get("method", DEFAULT)
    for name in METHODS if isinstance(method, str) and method in METHODS else ():
        if name != method and tree.get(name):
            raise UserError(
                f"{source} with method={method} holds settings of {name}, which nothing would "
                f"read: start from a recipe of {method}, or leave the section {name} out"
            )
    return validate(tree, source=source)


def validate(tree: Tree, *, source: str) -> RunConfig:
    """A nested mapping -> RunConfig, or a UserError that lists every mistake."""
    tree = with_new_names(tree)
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise UserError(f"{source}:\n  " + "\n  ".join(lines)) from error
    read = config.model_dump(mode="json")
    if wild := [*_out_of_range(read, ""), *_truths(tree, read, "")]:
        raise UserError(f"{source}:\n  " + "\n  ".join(wild))
    return config


def _truths(given: Json, read: Json, key: str) -> Iterator[str]:
    """Lines about numbers that were given as true or false, which Python takes for 1 or 0."""
    if isinstance(given, dict) and isinstance(read, dict):
        for name in given.keys() & read.keys():
            yield from _truths(given[name], read[name], f"{key}.{name}".lstrip("."))
    elif isinstance(given, (list, tuple)) and isinstance(read, list):
        lines = (line for pair in zip(given, read, strict=False) for line in _truths(*pair, key))
        yield from dict.fromkeys(lines)
    elif isinstance(given, bool) and isinstance(read, (int, float)) and not isinstance(read, bool):
        yield f"{key}: must be a number, got {str(given).lower()}"


def _out_of_range(value: Json, key: str) -> Iterator[str]:
    """Lines about numbers that no run can mean, whichever section they stand in."""
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _out_of_range(child, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for child in value:
            yield from _out_of_range(child, key)
    elif isinstance(value, (int, float)):
        largest = _LARGEST.get(key.rpartition(".")[2], 2**31)
        if not abs(value) <= largest:
            yield f"{key}: must be finite and at most {largest:,}, got {value}"


def with_new_names(tree: Tree) -> Tree:
    """The same settings where keys that had another name once have their present one."""
    return {
        _RENAMED.get(key, key): with_new_names(value) if isinstance(value, dict) else value
        for key, value in tree.items()
    }


def dump(config: RunConfig) -> str:
    """The resolved configuration as YAML that `load` reads back, without unused methods."""
    return yaml.safe_dump(config.used(), sort_keys=False)


def differences(old: Mapping[str, Json], new: Mapping[str, Json], prefix: str = "") -> list[str]:
    """Lines "key: old -> new" for every leaf in which two nested mappings differ."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


def _explain(item: ErrorDetails) -> str:
    location = [str(part) for part in item["loc"]]
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        valid = _fields_at(location[:-1])
        close = difflib.get_close_matches(location[-1], valid, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        return f"unknown key {key}{hint}; valid keys here: {', '.join(valid)}"
    if item["type"] == "missing" and isinstance(item["loc"][-1], int):
        place, whole = int(location.pop()), f"{item['input']!r:.200}"
        return f"{'.'.join(location)}: must hold {place + 1} values or more, got {whole}"
    if item["type"] == "missing":
        return f"missing key {key}: add it to the file or pass {key}=VALUE"
    given = "" if isinstance(item["input"], dict) else f", got {item['input']!r:.200}"
    return f"{key}: {in_words(item)}{given}"


def in_words(item: ErrorDetails) -> str:
    """What a value must be."""
    if item["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "must be a section of keys and values"
    if item["type"] == "too_short":
        return "must hold something"
    said = item["msg"].removeprefix("Value error, ")
    return said.replace("Input should be", "must be").replace("Keys should be", "keys must be")


def _fields_at(location: list[str]) -> list[str]:
    section: type[BaseModel] = RunConfig
    for name in location:
        inner = section.model_fields[name].annotation
        assert isinstance(inner, type)
        assert issubclass(inner, BaseModel)
        section = inner
    return sorted(section.model_fields)
