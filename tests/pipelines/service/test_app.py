"""The service answers what the gallery does, refuses what it must, tells no path of its host."""

from __future__ import annotations

import io
import shutil
import socket
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image, PngImagePlugin

pytest.importorskip("lancedb")
pytest.importorskip("fastapi")
pytest.importorskip("python_multipart")
pytest.importorskip("prometheus_client")

from fastapi.testclient import TestClient

from pipelines.errors import UserError
from pipelines.evaluation import calibrated
from pipelines.evaluation.calibrated import Calibrated
from pipelines.evaluation.encoder import JointSpace, in_joint_space, open_encoder
from pipelines.retrieval.fill import add_vectors
from pipelines.retrieval.gallery import Added, Facts, Gallery
from pipelines.retrieval.gallery_rows import time_of
from pipelines.retrieval.sources import Source
from pipelines.service.app import build
from pipelines.service.desk import Desk, Input, UnavailableError
from pipelines.service.plan import Settings, desk_of, encoding_of, plan_of
from reid_core.calibration import fit
from reid_core.types import Modality
from tests.pipelines.trained import draw_folder, embed_alone, save_run

TOKEN = "a-secret-of-some-length"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a calibration, images with an odd absolute name among them, a gallery."""
    root = tmp_path_factory.mktemp("service")
    run, images = save_run(root / "run"), draw_folder(root / "images", visible=6, infrared=4)
    lines = ["image,modality,pid,camera"]
    lines += [f"visible/{i}.png,visible,{i % 3},{1 + i % 2}" for i in range(1, 6)]
    lines += [f"infrared/{i}.png,infrared,{i % 3},{1 + i % 2}" for i in range(4)]
    lines += [f"{images}/visible/0.png,visible,0,1"]
    (images / "list.csv").write_text("\n".join(lines))
    add_vectors(root / "gallery", embed_alone(run, Source(images / "list.csv"), root / "vectors"))
    cosines = np.linspace(-1, 1, 200)
    known = fit(cosines, cosines > 0.9)
    names = ("infrared visible", "visible visible", "infrared infrared")
    calibrated.save(
        run,
        Calibrated(open_encoder(run).fingerprint, "test", dict.fromkeys(names, known), {}, {}),
    )
    return root


def test_routes_that_start_again_know_the_calibration_of_the_plan(
    place: Path, tmp_path: Path
) -> None:
    """The run was trained on meanwhile, and its checkpoint is gone."""
    run = shutil.copytree(place / "run", tmp_path / "run")
    plan = plan_of(Settings(str(place / "gallery"), checkpoint=run, prior=0.01))
    shutil.rmtree(run)
    assert desk_of(plan).facts().calibrated == "test"
    assert plan.calibrated is not None
    assert plan.calibrated.prior == 0.01


def client_of(place: Path, **options: Any) -> TestClient:
    plan = plan_of(Settings(str(place / "gallery"), **options))
    desk, encoding = desk_of(plan), encoding_of(plan)

    async def embed(asked: Input) -> np.ndarray:
        return encoding.embed([asked])[0]

    well = AsyncMock(return_value="")
    app = build(desk, embed, trouble=well, token=plan.settings.token, max_bytes=2**20)
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(place: Path) -> TestClient:
    return client_of(place)


def png(width: int = 32, height: int = 64) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, format="PNG")
    return buffer.getvalue()


def test_an_image_finds_itself_with_a_probability(place: Path, client: TestClient) -> None:
    image = (place / "images" / "visible" / "2.png").read_bytes()
    answer = client.post("/search", files={"image": image}, data={"seen_as": "visible", "top": 3})
    assert answer.status_code == 200
    first, *others = answer.json()["answers"]
    assert (first["id"], first["camera"], len(others)) == ("visible/2.png", 1, 2)
    assert first["similarity"] == pytest.approx(1, abs=1e-3)
    assert first["probability"] > others[-1]["probability"] >= 0
    assert first["thumbnail"].startswith("data:image/jpeg;base64,")


def test_filters_and_more_like_this(client: TestClient) -> None:
    sent = {"id": "visible/2.png", "modality": "infrared", "camera": ["2"], "top": "50"}
    answers = client.post("/search", data=sent).json()["answers"]
    assert {answer["id"] for answer in answers} == {"infrared/1.png", "infrared/3.png"}


def test_no_answer_tells_where_the_server_keeps_its_files(place: Path, client: TestClient) -> None:
    answers = client.post("/search", data={"id": "visible/2.png", "top": "100"}).json()["answers"]
    (hidden,) = [
        answer["id"]
        for answer in answers
        if answer["id"].endswith("/0.png") and not answer["id"].startswith(("visible", "infrared"))
    ]
    again = client.post("/search", data={"id": hidden, "top": "1"})
    assert again.status_code == 200, "a hidden name can be asked for"
    texts = [again.text, client.get("/facts").text, client.get("/metrics").text, str(answers)]
    texts.append(client.post("/search", data={"id": "/nobody.png"}).text)
    texts.append(client.post("/search", data={"id": hidden, "camera": "77"}).text)
    assert not any(str(place) in text for text in texts)


def test_an_added_image_is_found_and_the_same_again_changes_nothing(
    place: Path, tmp_path: Path
) -> None:
    client = client_of(place, uploads=tmp_path)
    sent: dict[str, Any] = {"files": {"image": png()}, "data": {"seen_as": "infrared", "camera": 9}}
    first = client.post("/images", **sent).json()
    assert first["new"]
    assert not client.post("/images", **sent).json()["new"]
    (result,) = client.post(
        "/search", files={"image": png()}, data={"seen_as": "infrared", "top": 1}
    ).json()["answers"]
    assert (result["id"], result["camera"]) == (first["id"], 9)
    assert client_of(place).post("/images", **sent).status_code == 400, "read only"


def test_what_is_known_of_an_image_stays_when_it_comes_again_without(
    place: Path, tmp_path: Path
) -> None:
    client = client_of(place, uploads=tmp_path)
    image = {"image": png(33)}
    sent = {"seen_as": "visible", "camera": "9", "time": "2026-11-27T14:05"}
    name = client.post("/images", files=image, data=sent).json()["id"]
    opened = Gallery.open(place / "gallery")
    before = opened.get(name)
    client.post("/images", files=image, data={"seen_as": "visible"})
    now = opened.get(name)
    assert before is not None
    assert now is not None
    assert (
        (now.camera, now.time)
        == (before.camera, before.time)
        == (9, time_of("2026-11-27T14:05", ""))
    )
    client.post("/images", files=image, data={"seen_as": "visible", "camera": "8"})
    now = opened.get(name)
    assert now is not None
    assert (now.camera, now.time) == (8, before.time)


@pytest.mark.parametrize(
    ("fails", "message", "rows"),
    [
        ("descriptor", "no row was changed: the log", 0),
        ("joint", "was stored, but no sentence finds it", 1),
    ],
)
def test_what_was_stored_is_told_as_it_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fails: str,
    message: str,
    rows: int,
) -> None:
    tables = [
        Gallery.create(tmp_path, Facts("f", space, 4, "/run")) for space in ("descriptor", "joint")
    ]
    desk = Desk(
        tables[0],
        words=tables[1],
        calibrated=None,
        modalities=(Modality.VISIBLE,),
        size=(64, 32),
        uploads=tmp_path,
    )
    stored = Gallery.add

    def add(self: Gallery, rows: pa.Table, **options: Any) -> Added:
        if self.facts.space == fails:
            raise UserError("nothing was added: the disk is full")
        return stored(self, rows, **options)

    row = np.array([1, 0, 0, 0], np.float32)
    with monkeypatch.context() as broken:
        broken.setattr(Gallery, "add", add)
        with pytest.raises(UnavailableError, match=message):
            desk.add(png(), row, Modality.VISIBLE, in_words=row)
    assert "the disk is full" in caplog.text, "whoever runs the service is told why"
    assert (len(tables[0]), len(tables[1])) == (rows, 0)
    desk.add(png(), row, Modality.VISIBLE, in_words=row)
    assert (len(tables[0]), len(tables[1])) == (1, 1), "sent again, it is in both"


def test_words_ask_a_table_of_their_own_and_images_keep_their_probability(
    place: Path, tmp_path: Path
) -> None:
    images = draw_folder(tmp_path / "images", visible=4, infrared=0)
    for space in ("joint", "descriptor"):
        add_vectors(
            tmp_path / "gallery",
            embed_alone(place / "run", Source(images), tmp_path / space, space=space),
        )
    client = client_of(tmp_path, uploads=tmp_path)
    assert client.get("/facts").json()["sentences"]
    words = client.post("/search", data={"text": "a man in red"}).json()["answers"]
    assert [answer["probability"] for answer in words] == [None] * 4
    image = (images / "visible" / "2.png").read_bytes()
    sent: dict[str, Any] = {"files": {"image": image}, "data": {"seen_as": "visible"}}
    for answers in (
        client.post("/search", **sent).json()["answers"],
        client.post("/search", data={"id": words[0]["id"]}).json()["answers"],
    ):
        assert all(answer["probability"] is not None for answer in answers)
    refused = client.post("/search", data={"text": "a man", "min_probability": "0.5"})
    assert refused.status_code == 400
    assert "to this sentence have no probability" in refused.json()["detail"]
    added = client.post("/images", files={"image": png()}, data={"seen_as": "visible"}).json()
    assert (added["new"], added["rows"]) == (True, 5)
    words = client.post("/search", data={"text": "a man in red"}).json()["answers"]
    assert added["id"] in [answer["id"] for answer in words]
    alone = client_of(tmp_path, space="joint")
    sent["data"] |= {"min_probability": "0.5"}
    assert "no probability" in alone.post("/search", **sent).json()["detail"]
    assert client.get("/facts").json()["calibrated_sentences"] is False
    assert alone.get("/facts").json() | {"rows": 5, "calibrated": ""} == alone.get("/facts").json()


def test_a_table_of_words_that_another_encoder_left_is_not_asked(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The service starts, without sentences; beside it the right table would be taken."""
    own, dim = open_encoder(place / "run").fingerprint, 384
    Gallery.create(tmp_path, Facts(own, "descriptor", dim, str(place / "run")))
    assert plan_of(Settings(str(tmp_path))).words == ""
    assert not caplog.text
    Gallery.create(tmp_path, Facts("older", "joint", 32, "/nowhere"))
    plan = plan_of(Settings(str(tmp_path)))
    assert (plan.words, desk_of(plan).facts().sentences) == ("", False)
    assert caplog.text.count("is another encoder's") == 1
    words = open_encoder(place / "run", space="joint").fingerprint
    Gallery.create(tmp_path, Facts(words, "joint", 32, "/moved"), new_encoder=True)
    assert plan_of(Settings(str(tmp_path))).words == words


def test_both_spaces_share_the_weights_of_images(place: Path) -> None:
    loaded = open_encoder(place / "run")
    joint = in_joint_space(loaded, "f")
    own, alone = joint.encoder, open_encoder(place / "run", space="joint")
    assert isinstance(own, JointSpace)
    assert own.images is loaded.encoder
    pixels = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
    np.testing.assert_array_equal(
        joint.vectors(pixels, Modality.VISIBLE), alone.vectors(pixels, Modality.VISIBLE)
    )


def test_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http" not in page.text.replace("<meta http-equiv", "")
    assert client.get("/health").json() == {"status": "ok"}
    assert "crossreid_rows" in client.get("/metrics").text
    assert "/search" in client.get("/openapi.json").json()["paths"]


class TestRefused:
    @pytest.mark.parametrize(
        ("files", "data", "message"),
        [
            ({"image": b"no image"}, {"seen_as": "visible"}, "cannot be used"),
            ({"image": b""}, {"seen_as": "visible"}, "cannot be used"),
            ({"image": png()}, {"seen_as": "thermal"}, "knows visible and infrared"),
            ({"image": png()}, {}, "knows visible and infrared"),
            ({"image": png()}, {"text": "both"}, "one of them"),
            (None, {}, "one of them"),
            (None, {"text": "a man"}, "knows visible and infrared"),
            (None, {"id": "nobody"}, "no row is called nobody"),
            (None, {"id": "visible/2.png", "top": "1000"}, "between 1 and 100"),
            (None, {"id": "visible/2.png", "since": "soon"}, "write a time as"),
            (None, {"id": "visible/2.png", "camera": "55"}, "no row is of camera 55"),
        ],
    )
    def test_with_a_reason(
        self, client: TestClient, files: Any, data: dict[str, str], message: str
    ) -> None:
        answer = client.post("/search", files=files, data=data)
        assert answer.status_code == 400
        assert message in answer.json()["detail"]

    @pytest.mark.parametrize("camera", [2**31, 2**40, 2**70, -2])
    def test_a_camera_that_no_row_can_have(self, place: Path, tmp_path: Path, camera: int) -> None:
        client = client_of(place, uploads=tmp_path)
        data = {"seen_as": "visible", "camera": str(camera)}
        assert client.post("/images", files={"image": png(40)}, data=data).status_code == 422
        assert not list(tmp_path.iterdir()), "nothing was written"
        asked = {"id": "visible/2.png", "camera": str(camera)}
        assert client.post("/search", data=asked).status_code == 422

    def test_a_format_that_is_not_read(self, client: TestClient) -> None:
        sent = {"files": {"image": b"%!PS-Adobe-3.0 EPSF-3.0"}, "data": {"seen_as": "visible"}}
        answer = client.post("/search", **sent)
        assert answer.status_code == 400
        assert "its format EPS is not read" in answer.json()["detail"]

    def test_a_bomb_of_pixels(self, client: TestClient) -> None:
        buffer = io.BytesIO()
        Image.new("1", (20_000, 20_000)).save(buffer, format="PNG")
        sent = {"files": {"image": buffer.getvalue()}, "data": {"seen_as": "visible"}}
        answer = client.post("/search", **sent)
        assert answer.status_code == 400
        assert "cannot be used" in answer.json()["detail"]

    @pytest.mark.parametrize("kind", ["archive", "text of an image"])
    def test_what_grows_when_it_is_unpacked(self, client: TestClient, kind: str) -> None:
        buffer = io.BytesIO()
        if kind == "archive":
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("image.png", bytes(2**27))
        else:
            text = PngImagePlugin.PngInfo()
            text.add_text("comment", "0" * 2**27, zip=True)
            Image.new("RGB", (32, 64)).save(buffer, format="PNG", pnginfo=text)
        assert len(buffer.getvalue()) < 2**20
        sent = {"files": {"image": buffer.getvalue()}, "data": {"seen_as": "visible"}}
        answer = client.post("/search", **sent)
        assert answer.status_code == 400
        assert "cannot be used" in answer.json()["detail"]

    def test_too_many_bytes_declared_or_not(self, client: TestClient) -> None:
        assert client.post("/search", files={"image": bytes(2**21)}).status_code == 413
        name = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        chunks = (name if number == 0 else bytes(2**16) for number in range(40))
        kind = {"content-type": "multipart/form-data; boundary=x"}
        assert client.post("/search", content=chunks, headers=kind).status_code == 413

    def test_without_the_token(self, place: Path) -> None:
        client = client_of(place, token=TOKEN)
        assert client.get("/facts").status_code == 401
        assert client.get("/facts", headers={"Authorization": "Bearer no"}).status_code == 401
        allowed = client.get("/facts", headers={"Authorization": f"Bearer {TOKEN}"})
        assert allowed.json()["rows"] >= 10
        assert client.get("/").status_code == client.get("/health").status_code == 200

    def test_other_sites_and_other_names_of_this_machine(self, client: TestClient) -> None:
        assert client.get("/facts", headers={"sec-fetch-site": "cross-site"}).status_code == 403
        assert client.get("/facts", headers={"host": "rebound.example"}).status_code == 403

    def test_an_address_that_others_reach_needs_a_token(self) -> None:
        with pytest.raises(UserError, match="CROSSREID_TOKEN"):
            Settings("g", host="0.0.0.0").check()
        with pytest.raises(UserError, match="fewer than 16"):
            Settings("g", host="0.0.0.0", token="short").check()

    def test_a_port_in_use(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(UserError, match="choose another --port"):
                Settings("g", port=taken.getsockname()[1]).check_port()
