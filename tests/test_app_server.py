"""The served page: requests of any kind, load, and what stays on the disk; only where gradio is installed."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path

import pytest
from PIL import Image
from test_app import Pipeline, spoil

import app
from animation import web_server
from animation.options import AS_SUGGESTED
from animation.studio import Studio
from data.video import probe_video

gradio = pytest.importorskip("gradio", reason="gradio is not installed (requirements-app.txt)")
client = pytest.importorskip("gradio_client")
httpx = pytest.importorskip("httpx")

FIELDS = {"image": None, "splat": "softmax", "strength": 1, "loop": True, "seconds": 1, "seed": 0, "move": [],
          "freeze": [], "wind": AS_SUGGESTED}  # fmt: skip


class Server:
    """The page, served from a folder, and requests to it."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.folder, self.made, self.sessions = folder, folder / "gradio" / "made", 0
        studio = Studio(Pipeline(), {"softmax": None, "gaussian": None}, self.made, size_px=48)
        self.page = app.make_page(gradio, studio)
        _, self.url, _ = app.launch(gradio, self.page, port=None, wait=False, **options)
        self.http = httpx.Client(base_url=self.url, timeout=120)
        dependencies = self.http.get("config").json()["dependencies"]
        (self.function,) = (one["id"] for one in dependencies if one.get("api_name") == "animate")

    def upload(self, data: bytes, name: str = "a.png") -> httpx.Response:
        return self.http.post("gradio_api/upload", files={"files": (name, data)})

    def image(self, name: str = "a.png") -> dict:
        """Upload an image; return what a request names it by."""
        picture = Path(self.folder / "picture.png")
        if not picture.is_file():
            Image.effect_noise((72, 48), 80).convert("RGB").save(picture)
        return named(self.upload(picture.read_bytes(), name).json()[0])

    def ask(self, **fields: object) -> httpx.Response:
        """Put a request into the queue, of a session of its own."""
        self.sessions += 1
        data = [*(FIELDS | fields).values()]
        body = {"data": data, "fn_index": self.function, "session_hash": f"session{self.sessions}"}
        return self.http.post("gradio_api/queue/join", json=body)

    def listen(self, session: int, until: str = "process_completed") -> dict:
        """Return the message of that kind, and leave."""
        with self.http.stream("GET", f"gradio_api/queue/data?session_hash=session{session}") as lines:
            for line in lines.iter_lines():
                message = json.loads(line[5:]) if line.startswith("data:") else {}
                if message.get("msg") == until:
                    return message
        raise AssertionError(f"no {until}")

    def answer(self, **fields: object) -> tuple[bool, object]:
        """Return whether a request succeeded, and its files or error."""
        asked = self.ask(**fields)
        assert asked.status_code == 200, asked.text
        message = self.listen(self.sessions)
        return message["success"], message["output"]["data" if message["success"] else "error"]


def named(path: object, **more: object) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        patch.setattr(app, "LONGEST_QUEUE", 4)
        server = Server(folder)
        yield server
        server.page.close()


def test_page_is_served_on_this_machine_only(server, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    assert server.url.startswith("http://127.0.0.1:")
    caller = client.Client(server.url, verbose=False, download_files=str(tmp_path))
    server.image()
    picture = client.handle_file(str(server.folder / "picture.png"))
    answer = caller.predict(picture, "softmax", 1, True, 1, 0, api_name="/animate")
    video = answer[0]["video"] if isinstance(answer[0], dict) else answer[0]
    assert answer[1].endswith(".html") and probe_video(video).width == 48
    for wanted in (tmp_path / "secret.txt", app.__file__, "/etc/passwd"):
        assert server.http.get(f"gradio_api/file={wanted}").status_code in (403, 404)


def test_bad_uploads_and_choices_are_one_line(server, tmp_path, capfd, caplog):
    for kind, message in (("text", "notes.png: is not an image"), ("elongated", "notes.png: 200 x 8 px")):
        spoil(tmp_path / "notes.png", kind)
        image = named(server.upload((tmp_path / "notes.png").read_bytes(), "notes.png").json()[0])
        success, error = server.answer(image=image)
        assert not success and error.startswith(message)
    for fields, message in (({"move": ["tree"]}, "no segmentation network"), ({"image": None}, "no image yet")):
        success, error = server.answer(**{"image": server.image(), **fields})
        assert not success and message in error
    assert "Traceback" not in "".join(capfd.readouterr()) + caplog.text and "refused" not in caplog.text


def test_a_request_reads_what_was_uploaded_alone(server, tmp_path, capfd, caplog):
    """Paths and addresses in each field, and bodies of another kind; each is one line in the server's log."""
    Image.effect_noise((72, 48), 80).convert("RGB").save(tmp_path / "private.png")
    private, good, closed = str(tmp_path / "private.png"), server.image(), "http://127.0.0.1:1/a.png"
    wrong = [{"path": private}, named(private), named(f"{good['path']}/../../../../..{private}"), private]
    wrong += [named(f"file://{private}"), named("/etc/passwd"), named(closed), {"path": closed}, {"url": closed}]
    wrong += [named("a\0b"), named("x" * 5000), {"path": None}, 17, [named(private)]]
    for image in wrong:
        assert server.answer(image=image)[0] is False, image
    assert server.answer(image={**good, "url": closed})[0]  # the file is there, its address is not looked at
    values = {"splat": ["../etc", None, {}], "strength": ["1e9", 1e300, None], "seconds": [1e9, -1, "x"],
              "seed": [-1, 2**70, []], "wind": ["../../etc/passwd", "nan", closed], "move": [["../../etc"], [None]],
              "freeze": [["<script>"]]}  # fmt: skip
    for field, ones in values.items():
        for value in (*ones, named(private), named(closed)):
            assert server.answer(image=good, **{field: value})[0] is False, (field, value)
    for body in (b"", b"{", b"[]", b"\xff", b'{"data": [], "fn_index": 99, "session_hash": "q"}'):
        for place in ("queue/join", "run/animate", "call/animate", "upload", "component_server"):
            answer = server.http.post(f"gradio_api/{place}", content=body)
            assert 400 <= answer.status_code < 500 or answer.status_code == 200 and place == "call/animate", place
    refused = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(refused) > 20 and all("\n" not in line and len(line) < 330 for line in refused)
    assert "Traceback" not in "".join(capfd.readouterr()) + caplog.text and server.answer(image=good)[0]


def test_who_leaves_stops_the_work(server):
    before = {*server.made.iterdir()}
    assert server.ask(image=server.image(), seconds=20).status_code == 200
    server.listen(server.sessions, until="process_generating")
    assert server.answer(image=server.image(), seconds=1)[0]
    assert sorted(path.suffix for path in {*server.made.iterdir()} - before) == [".html", ".mp4"]


def test_the_queue_has_an_end(server):
    image = server.image()
    first, statuses = server.sessions + 1, []
    while 503 not in statuses and len(statuses) < 20:
        statuses.append(server.ask(image=image, seconds=1).status_code)
    assert statuses.count(200) in range(4, 10) and set(statuses) == {200, 503}
    for session in range(first, first + statuses.count(200)):
        assert server.listen(session)["success"]
    assert server.answer(image=image)[0]
    for place in ("run", "api"):  # no request passes the queue by
        answer = server.http.post(f"gradio_api/{place}/animate", json={"data": [*(FIELDS | {"image": image}).values()]})
        assert answer.status_code == 404 and "queue" in answer.text


def test_forgotten_sessions_do_not_end_the_queue(server, capfd, caplog):
    """Gradio keeps those of the last 2000 that asked."""
    for _ in range(3):
        server.ask(image=server.image(), seconds=2)
    server.page._queue.pending_messages_per_session.clear()
    assert server.answer(image=server.image())[0]
    assert "Traceback" not in "".join(capfd.readouterr()) + caplog.text


def test_an_upload_that_is_too_large_leaves_nothing(server, monkeypatch):
    before = set((server.folder / "gradio").rglob("*"))
    assert server.upload(bytes(web_server.LARGEST_UPLOAD_BYTES + 1)).status_code == 413
    monkeypatch.setattr(web_server, "MOST_DISK_BYTES", web_server.LARGEST_UPLOAD_BYTES + 1000)
    answer = server.upload(b"x" * 1000)
    assert answer.status_code == 507 and "no room for more images now" in answer.text
    assert set((server.folder / "gradio").rglob("*")) == before
    monkeypatch.undo()
    assert server.upload(b"x" * 1000).status_code == 200


def test_an_upload_while_files_go_succeeds(server):
    folders, over = [server.folder / "gradio" / f"passing{number}" for number in range(100)], threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            for folder in folders:
                folder.mkdir(parents=True)
                (folder / "a.png").touch()
            for folder in folders:
                (folder / "a.png").unlink()
                folder.rmdir()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        assert {server.upload(b"x" * 1000).status_code for _ in range(100)} == {200}
    finally:
        over.set()
        thread.join()


def test_old_files_go_and_a_proxy_may_be_in_front(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(web_server, "CLEAN_EVERY_S", 0.5)
    monkeypatch.setattr(web_server, "KEPT_FOR_S", 2)
    server = Server(tmp_path, root_path="/animate")
    try:
        assert server.http.get("config").json()["root"].endswith("/animate")
        success, files = server.answer(image=server.image())
        paths = [Path(file["path"]) for file in (files[0].get("video", files[0]), files[1])]
        assert success and all(path.is_file() and path.is_relative_to(tmp_path / "gradio") for path in paths)
        assert len(list(server.made.iterdir())) == 2
        assert all("/animate/gradio_api/file=" in json.dumps(file) for file in files)
        deadline = time.monotonic() + 30
        while list((tmp_path / "gradio").iterdir()) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not list((tmp_path / "gradio").iterdir())
    finally:
        server.page.close()


@pytest.mark.parametrize("path", ["animate", "/", "", "ftp://host/a", "/a?b", "/a b"])
def test_a_wrong_root_path_is_one_line(path, capsys):
    assert app.main(["--root-path", path]) == 2
    assert re.fullmatch(
        r"app.py: error: --root-path: expected a path such as /animate, got [^\n]+\n", capsys.readouterr().err
    )
