"""CrossReID from Python: the same five things that the command line does.

    from pipelines import load_config, train, evaluate, open_encoder

    config = load_config("demo.yaml", {"data.root": "/data/world"})
    summary = train(config, out="runs/a")
    scores = evaluate("runs/a")
    vectors = open_encoder("runs/a").embed_images(["query.jpg"], modality="infrared")

Nothing heavy is imported before one of them is called. What goes wrong raises
`pipelines.errors.UserError`, whose text names the culprit and the remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

if TYPE_CHECKING:
    from pipelines.config.run import Overrides, RunConfig
    from pipelines.evaluation.encoder import LoadedEncoder
    from pipelines.retrieval.embed import Embedded, EmbedOptions
    from pipelines.runs.records import ScoreTable, Summary

__all__ = ["embed", "evaluate", "load_config", "open_encoder", "train"]


def load_config(recipe: str | Path, overrides: Overrides = ()) -> RunConfig:
    """A run's settings: a recipe, and what differs from it.

    Args:
        recipe: a YAML file, or the name of one of the recipes in tune_configs.
        overrides: {"data.root": "/data/SYSU-MM01", ...}, or texts "key=value" as on the command
            line.

    Raises:
        UserError: no such file, an unknown key, a value out of range.
    """
    from pipelines.config import run as configuration

    return configuration.load(_path("recipe", recipe), overrides)


def train(
    config: RunConfig, *, out: str | Path, backend: Literal["ray", "local"] = "ray"
) -> Summary:
    """Train all stages, measure, write the report; a used directory is continued.

    Args:
        config: from `load_config`; with data.trial=all every trial is trained, as many at a time
            as the cluster has room for.
        out: run directory.
        backend: "ray" on a cluster or on one that is started on this machine; "local" in this
            process, without Ray.

    Returns:
        The summary, as in summary.json.

    Raises:
        UserError: something the user can put right.
    """
    from pipelines.config.run import RunConfig
    from pipelines.errors import UserError
    from pipelines.evaluation import regdb_trials
    from pipelines.report import page, trials_page

    if not isinstance(config, RunConfig):
        raise UserError(f"config={config!r:.60}: give what `load_config` returns")
    out = _path("out", out)

    def train_these(runs: Mapping[Path, RunConfig]) -> Mapping[Path, Summary]:
        if backend == "ray":
            from pipelines.training import side_by_side

            return side_by_side.train_on_one_cluster(runs, _command())
        _trainer(backend)  # refuses another word
        from pipelines.training import local

        return local.train_all(runs, _command())

    if config.data.trial != "all":
        summary = _trainer(backend)(config, out, _command())
        page.write(out)
        return summary
    summary = regdb_trials.train_all(config, out.resolve(), train_these)
    trials_page.write(out)
    return summary


def evaluate(
    checkpoint: str | Path,
    *,
    kind: str | None = None,
    root: str | Path | None = None,
    trial: int | None = None,
    split: str = "test",
    flip: bool = False,
    reranked: bool = False,
) -> ScoreTable:
    """Scores of a checkpoint under every protocol of a data set, in percent.

    Args:
        checkpoint: a run directory or checkpoint folder.
        kind, root, trial: of the data set; None for those of the run.
        split: "test" or "val".
        flip, reranked: also with mirrored images, or re-ranked, on lines of their own.

    Returns:
        {"<protocol>/<mode>/<direction>": {"mean": {rank1, ...}, "std": {...},
        "num_valid_queries", "num_invalid_queries"}}, as `crossreid eval --json` writes it.

    Raises:
        UserError: no such checkpoint, data set or split.
    """
    from pipelines.evaluation.checkpoint import evaluate_checkpoint

    return evaluate_checkpoint(
        _path("checkpoint", checkpoint),
        kind=kind,
        root=None if root is None else Path(root),
        trial=trial,
        split=split,
        flip=flip,
        reranked=reranked,
    ).table


def open_encoder(
    checkpoint: str | Path, *, space: Literal["descriptor", "joint"] = "descriptor"
) -> LoadedEncoder:
    """A trained encoder, on a GPU if there is one; `embed_images` turns files into vectors.

    Args:
        checkpoint: a run directory or checkpoint folder.
        space: "descriptor", what the method was trained to rank by, or "joint", CLIP's space,
            where sentences can be compared with images.

    Raises:
        UserError: no such checkpoint, or one without a trained encoder.
    """
    from pipelines.evaluation import encoder

    return encoder.open_encoder(_path("checkpoint", checkpoint), space=space)


def embed(
    checkpoint: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    space: Literal["descriptor", "joint"] = "descriptor",
    dtype: Literal["float16", "float32"] = "float16",
    **options: Unpack[EmbedOptions],
) -> Embedded:
    """Vectors of every image below a folder, as Parquet files; what is there stays.

    Args:
        checkpoint: a run directory or checkpoint folder.
        source: folder of images, or a manifest.
        out: folder of the vectors.
        space: see `open_encoder`.
        dtype: of the vectors.
        options: see `pipelines.retrieval.embed.embed`.

    Raises:
        UserError: nothing to embed, `out` holds other vectors, too many images cannot be read.
    """
    from pipelines.retrieval import embed as retrieval
    from pipelines.retrieval.sources import Source

    return retrieval.embed(
        _path("checkpoint", checkpoint),
        Source(_path("source", source)),
        _path("out", out),
        space=space,
        dtype=dtype,
        **options,
    )


def _path(name: str, given: str | Path) -> Path:
    """An argument as a path."""
    if isinstance(given, (str, Path)):
        return Path(given)
    from pipelines.errors import UserError

    raise UserError(f"{name}={given!r:.60}: give a path")


def _trainer(backend: str) -> Callable[[RunConfig, Path, Sequence[str]], Summary]:
    """What trains one run: (config, run_dir, command) -> summary."""
    if backend == "ray":
        from pipelines.training import driver

        return driver.train
    if backend == "local":
        from pipelines.training import local

        return local.train
    from pipelines.errors import UserError

    raise UserError(f"backend={backend!r}: choose ray or local")


def _command() -> list[str]:
    """The command line that is running, for the record of a run."""
    import sys

    return list(sys.argv)
