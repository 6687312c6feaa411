"""A complete run directory made of generated numbers and small images, and a reader of pages."""

from __future__ import annotations

import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

from pipelines.report.page import write

NUM_IDENTITIES = 8
SUMMARY: dict[str, Any] = {
    "rows": {
        "start": {"rank1": 32.54, "rank5": 60.1, "rank10": 72.3, "mAP": 29.61, "mINP": 15.2},
        "prepare": {"rank1": 31.44, "rank5": 61.0, "rank10": 73.9, "mAP": 32.81, "mINP": 18.0},
        "align": {"rank1": 38.25, "rank5": 68.2, "rank10": 79.4, "mAP": 37.72, "mINP": 22.9},
        "final": {"rank1": 38.25, "rank5": 68.2, "rank10": 79.4, "mAP": 37.72, "mINP": 22.9},
    },
    "protocol": "SYSU-MM01 all-search single-shot, mean of 10 galleries, infrared query",
    "chance": {"rank1": 1.16},
    "seconds": {"generate": 41.2, "start": 6.0, "train": 312.9, "evaluate": 9.4, "total": 371.5},
    "seed": 7,
    "evaluation": {
        "sysu/all/infrared->visible": {
            "mean": {"rank1": 38.25, "rank5": 68.2, "rank10": 79.4, "mAP": 37.72, "mINP": 22.9},
            "std": {"rank1": 1.3, "rank5": 1.1, "rank10": 0.9, "mAP": 0.8, "mINP": 0.7},
            "num_valid_queries": 1032,
            "num_invalid_queries": 0,
        }
    },
}


def epoch_line(stage: str, epoch: int, progress: float, rng: np.random.Generator) -> dict[str, Any]:
    """One line of metrics.jsonl; `progress` runs from 0 to 1 over the run."""
    noise = rng.normal(0, 0.015, 8)
    line: dict[str, Any] = {
        "stage": stage,
        "epoch": epoch,
        "lr": 1e-3,
        "losses": {"visible": 2.4 * (1 - 0.6 * progress) + noise[0], "infrared": 2.6 - progress},
        "seconds": {"input": 0.9, "step": 8.5 + 20 * noise[1], "checkpoint": 0.3},
        "speed": {"device_memory_bytes": 5 << 30, "images_per_s": 900.0, "mfu": None},
    }
    if stage == "prompts":
        line["losses"]["total"] = line["losses"]["visible"] + line["losses"]["infrared"]
        return line
    line["losses"]["image_to_text"] = 1.9 - 0.7 * progress
    line["losses"]["total"] = sum(line["losses"].values())
    line["clusters"] = {
        "visible": round(420 - 90 * progress),
        "infrared": round(380 - 60 * progress),
    }
    line["outliers"] = {
        "visible": round(700 - 500 * progress),
        "infrared": round(650 - 380 * progress),
    }
    line["rows"] = {"visible": 4800, "infrared": 3600}
    line["truth"] = {
        "visible": {"ari": 0.59 + 0.24 * progress + noise[2], "purity": 0.86 + 0.08 * progress},
        "infrared": {"ari": 0.57 + 0.17 * progress + noise[3], "purity": 0.84 + 0.06 * progress},
        "matching_accuracy": 0.4 + 0.08 * progress + noise[4] if stage == "align" else None,
    }
    line["seconds"] |= {"embed": 4.1, "cluster": 0.8, "match": 0.05, "plan": 0.1}
    if stage == "align":
        line["pairs"] = round(250 + 40 * progress)
        line["mutual_nearest"] = 0.4 + 0.1 * progress
        line["truth"]["association"] = {"precision": 0.5, "recall": 0.4 + 0.1 * progress}
        line["pair_similarity"] = {"mean": 0.61 + 0.1 * progress, "min": 0.2}
    if epoch % 2 == 1:
        line["scores"] = {
            "rank1": 31 + 7 * progress, "rank5": 65.0, "rank10": 78.0,
            "mAP": 30 + 7.5 * progress, "mINP": 20.0,
        }  # fmt: skip
        line["seconds"]["evaluate"] = 1.2
    return line


def draw_identity(path: Path, pid: int, infrared: bool) -> None:
    """A 64x32 (HxW) figure whose colors belong to the person."""
    path.parent.mkdir(parents=True, exist_ok=True)
    top, bottom = ((37 * pid * k) % 256 for k in (3, 5))
    image = Image.new("RGB", (32, 64), (150, 150, 140))
    pen = ImageDraw.Draw(image)
    pen.rectangle((10, 16, 22, 38), fill=(top, 90, 255 - top))
    pen.rectangle((11, 38, 21, 60), fill=(60, bottom, 90))
    pen.ellipse((12, 5, 20, 15), fill=(225, 180, 150))
    (image.convert("L") if infrared else image).save(path, quality=92)


def fake_evaluation(root: Path, noise: float, rng: np.random.Generator) -> dict[str, Any]:
    """Arrays of evaluation/<row>.npz from noisy embeddings; images go below root."""
    query_pids = np.repeat(np.arange(NUM_IDENTITIES), 3)
    gallery_pids = np.repeat(np.arange(NUM_IDENTITIES), 2)
    queries = [f"cam{3 + 3 * (i % 2)}/{p:04d}/{i:04d}.jpg" for i, p in enumerate(query_pids)]
    gallery = [f"cam{1 + i % 2}/{p:04d}/{i:04d}.jpg" for i, p in enumerate(gallery_pids)]
    for path, pid in zip(queries, query_pids, strict=True):
        draw_identity(root / path, int(pid), infrared=True)
    for path, pid in zip(gallery, gallery_pids, strict=True):
        draw_identity(root / path, int(pid), infrared=False)
    centers = rng.normal(size=(NUM_IDENTITIES, 16))
    features = centers[np.r_[query_pids, gallery_pids]]
    features = features + noise * rng.normal(size=features.shape)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    similarity = features[: len(queries)] @ features[len(queries) :].T
    top = np.argsort(-similarity, axis=1, kind="stable")
    right = gallery_pids[top] == query_pids[:, None]
    first = right.argmax(axis=1)
    hits = right.cumsum(axis=1) / np.arange(1, len(gallery) + 1)
    edges = np.linspace(-1, 1, 41)
    same = query_pids[:, None] == gallery_pids[None, :]
    return {
        "cmc": np.array([(first <= k).mean() for k in range(20)]),
        "ap": (hits * right).sum(axis=1) / right.sum(axis=1),
        "query_images": np.array(queries),
        "gallery_images": np.array(gallery),
        "top": top[:, :10],
        "top_similarity": np.take_along_axis(similarity, top, axis=1)[:, :10],
        "top_correct": right[:, :10],
        "pairs": np.array(["infrared visible"]),
        "same_hist": np.histogram(similarity[same], edges)[0][None],
        "different_hist": np.histogram(similarity[~same], edges)[0][None],
        "bins": edges,
    }


def fake_run(directory: Path, root: Path) -> Path:
    """A complete run directory as training leaves it."""
    rng = np.random.default_rng(0)
    (directory / "evaluation").mkdir(parents=True)
    plan = [("prepare", 6), ("prompts", 8), ("align", 8)]
    steps = [(stage, epoch) for stage, count in plan for epoch in range(count)]
    lines = [
        json.dumps(epoch_line(stage, epoch, i / (len(steps) - 1), rng))
        for i, (stage, epoch) in enumerate(steps)
    ]
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (directory / "summary.json").write_text(json.dumps(SUMMARY))
    config = {
        "method": "cclnet",
        "seed": 7,
        "data": {"kind": "sysu", "root": str(root), "trial": None, "extra_roots": []},
        "model": {
            "name": "small-clip",
            "height": 64,
            "width": 32,
            "stems": ["visible", "infrared"],
        },
        "cclnet": {
            "prepare": {"epochs": 6, "lr": 1e-3, "momentum": 0.5, "temperature": 0.05},
            "prompts": {"epochs": 8, "lr": 3.5e-4},
            "align": {"epochs": 8, "swap": {"when": "epoch", "keep": 0.1}, "text_weight": 0.5},
        },
        "clustering": {"k1": 12, "k2": 3, "eps": 0.6, "min_samples": 4},
        "trainer": {"num_workers": 2, "precision": "fp32", "batches_per_block": 4},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {
        "crossreid": "0.1.0", "python": "3.11.9", "torch": "2.15.0", "ray": "2.60.0",
        "machine": {"cpu": "AMD EPYC 7763", "cores": 2, "memory_gb": 24.0, "gpu": None},
        "command": "crossreid demo --out runs/demo --seed 7",
        "started": "2026-03-04T09:05:00+00:00",
    }  # fmt: skip
    (directory / "environment.json").write_text(json.dumps(environment))
    for row, noise in (("start", 1.3), ("prepare", 1.1), ("final", 0.8)):
        arrays = fake_evaluation(root, noise, np.random.default_rng(1))
        np.savez(directory / "evaluation" / f"{row}.npz", **arrays)
    return directory


class Page(HTMLParser):
    """What a browser would see of a page: elements with attributes, cells and running text."""

    VOID = frozenset(("meta", "img", "br"))

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        self.text += " "

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if self.rows and {"td", "th"} & set(self.open):
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())

    def values(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.elements if name in attrs]

    def classes(self) -> Counter[str]:
        return Counter(one for value in self.values("class") for one in value.split())

    def says(self, text: str) -> bool:
        return text in " ".join(self.text.split())


def small_run(directory: Path, *lines: dict | str) -> Path:
    """A run directory with nothing but metrics.jsonl."""
    directory.mkdir(parents=True, exist_ok=True)
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (directory / "metrics.jsonl").write_text(text + "\n")
    return directory


def html_of(directory: Path) -> str:
    """The page of a run, written anew."""
    return write(directory).read_text(encoding="utf-8")
