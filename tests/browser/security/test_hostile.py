"""Hostile requests: refused, and no files remain."""

from __future__ import annotations

import io
import os
import socket
import struct
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import nibabel as nib
import numpy as np
import pytest

from medsam_app.browser.app import running
from medsam_app.browser.state.service import Service
from medsam_app.io import archive

# ruff: noqa: E501
GB = 10**9
#: Long timeout, since other processes may share the machine.
WEB = httpx.Client(timeout=120)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    shown = tmp_path_factory.mktemp("shown")
    secret = tmp_path_factory.mktemp("secret")
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(12, 12, 12)).astype("f4"), np.eye(4))
    nib.save(image, shown / "a.nii.gz")
    nib.save(image, secret / "b.nii.gz")
    (shown / "out").symlink_to(secret)
    (shown / "link.nii.gz").symlink_to(secret / "b.nii.gz")
    (shown / "again").symlink_to(shown)
    return Service(roots=[shown], upload_bytes=2 * GB)


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    """Address of a real server, since a test client would normalize paths."""
    with running(service) as address:
        yield address.rstrip("/")


@pytest.fixture
def session_headers(url: str) -> dict[str, str]:
    return {"X-Medsam-Session": WEB.post(f"{url}/medsam/api/session").json()["token"]}


def raw(url: str, head: str, body: bytes = b"") -> bytes:
    """Send the bytes unchanged to a server; return the start of its answer."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=120) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        return connection.recv(65536)


def on_disk(service: Service) -> int:
    """Return the size in bytes of all files on the server that were sent to it."""
    folders = [service.exchange.folder, *(w.files.folder for w in service.workspaces._by_token.values())]
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


TRAVERSALS = [
    "../secret0/b.nii.gz", "..\\secret0\\b.nii.gz", "/etc/passwd", "//etc/passwd", "out/b.nii.gz", "link.nii.gz",
    "out", "again/../../secret0/b.nii.gz", "%2e%2e/secret0/b.nii.gz", "%2fetc%2fpasswd", "..%2f..%2fetc%2fpasswd",
    "a.nii.gz\0.png", "~/x.nii", "file:///etc/passwd", "\u2025/\u2025/etc/passwd", "x" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_path_leads_out_of_the_folders(url: str, session_headers: dict[str, str], path: str) -> None:
    answer = WEB.post(
        f"{url}/medsam/api/open", headers=session_headers, json={"source": "folder", "path": path}
    )
    assert answer.status_code == 422 and "not" in answer.json()["error"], answer.text
    listed = WEB.get(f"{url}/medsam/api/files", params={"path": path}, headers=session_headers)
    assert listed.status_code == 422, listed.text
    assert "secret" not in listed.text.replace(path, "") and "root:" not in listed.text


def test_files_outside_are_not_listed(url: str, session_headers: dict[str, str]) -> None:
    listed = WEB.get(f"{url}/medsam/api/files", headers=session_headers).json()["entries"]
    assert {entry["name"] for entry in listed} <= {"a.nii.gz", "again"}


@pytest.mark.parametrize(
    "route", ["medsam/static/", "gradio_api/file=", "file=", "static/", "assets/", "svelte/"]
)
def test_files_of_the_machine_are_not_served(url: str, service: Service, route: str) -> None:
    up = "../" * 12
    hidden = service.roots[0] / "a.nii.gz"
    for path in (f"{up}etc/passwd", quote(up, safe="") + "etc/passwd", "/etc/passwd", "%2fetc%2fpasswd",
                 "..%5c..%5cetc%5cpasswd", "....//....//etc/passwd", str(hidden), "/proc/self/environ"):  # fmt: skip
        answer = raw(url, f"GET /{route}{path} HTTP/1.1\nHost: 127.0.0.1\nConnection: close")
        status = int(answer.split()[1])
        assert status in (400, 403, 404, 405), (path, answer[:200])
        assert b"root:" not in answer and b"PATH=" not in answer


@pytest.mark.parametrize(
    "path", ["/proxy=https://example.org/", "/file=http://127.0.0.1:1/", "/monitoring", "/run-history/records",
             "/component_server", "/process_recording", "/profiling/summary", "/openapi.json", "/login"]
)  # fmt: skip
def test_unused_routes_of_gradio_are_closed(url: str, path: str) -> None:
    for base in ("", "/gradio_api"):
        for method in ("GET", "POST"):
            assert WEB.request(method, f"{url}{base}{path}").status_code in (404, 405)


def zipped(entries: dict[str, bytes]) -> bytes:
    """Return a zip with these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive_:
        for name, content in entries.items():
            archive_.writestr(name, content)
    return buffer.getvalue()


def with_declared_size(body: bytes, size: int) -> bytes:
    """Return a zip of one entry with another unpacked size in its directory."""
    offset = body.rindex(b"PK\x01\x02") + 24
    return body[:offset] + struct.pack("<I", size) + body[offset + 4 :]


def test_zip_bombs_are_refused_and_nothing_stays(
    url: str,
    service: Service,
    session_headers: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(archive, "MAX_UNPACKED", 10**6)
    monkeypatch.setattr(archive.tempfile, "tempdir", str(tmp_path))
    bomb = zipped({"a.dcm": bytes(30 * 10**6)})
    assert len(bomb) < 40_000
    bombs = [
        bomb,
        with_declared_size(bomb, 1000),
        zipped({"in.zip": bomb}),
        zipped({"../../x.dcm": b"1"}),
        b"PK\x03\x04" + bytes(99),
    ]
    bombs.append(zipped({f"{n}.dcm": b"" for n in range(99)}))
    monkeypatch.setattr(archive, "MAX_FILES", 50)
    for body in bombs:
        upload = WEB.post(
            f"{url}/medsam/api/upload", params={"name": "a.zip"}, headers=session_headers, content=body
        ).json()
        start = time.monotonic()
        answer = WEB.post(
            f"{url}/medsam/api/open", headers=session_headers, json={"source": "upload", **upload}, timeout=60
        )
        assert answer.status_code == 422 and answer.json()["error"].endswith((".", ";")), answer.text
        assert time.monotonic() - start < 30
    remaining = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file() and "medsam-" not in str(p))
    assert remaining == 0


def test_ten_gigabytes_are_refused_at_once(
    url: str, service: Service, session_headers: dict[str, str]
) -> None:
    token = session_headers["X-Medsam-Session"]
    before = on_disk(service)
    for path in ("/medsam/api/upload?name=a.nii", "/gradio_api/upload"):
        head = f"POST {path} HTTP/1.1\nHost: 127.0.0.1\nX-Medsam-Session: {token}\nContent-Length: {10 * GB}"
        answer = raw(url, f"{head}\nContent-Type: multipart/form-data; boundary=x", b"x" * 1000)
        assert answer.split()[1] == b"413", answer  # refused before the body arrives
    # The list of a folder contains the sizes of its files.
    entries = b'[{"name": "a.dcm", "size": 10000000000}]'
    body = struct.pack("<I", len(entries)) + entries
    answer = WEB.post(
        f"{url}/medsam/api/upload-folder", params={"name": "x"}, headers=session_headers, content=body
    )
    assert answer.status_code == 413
    assert on_disk(service) == before


def test_endless_uploads_end_at_the_limit(
    url: str, service: Service, session_headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 10 GB without Content-Length, at most the limit is read, and then deleted."""
    monkeypatch.setattr(service, "upload_bytes", 5 * 10**6)
    before, sent = on_disk(service), [0]

    def endless() -> Iterator[bytes]:
        while sent[0] < 10 * GB:
            sent[0] += 65536
            yield bytes(65536)

    try:
        answer = WEB.post(
            f"{url}/medsam/api/upload", params={"name": "a.nii"}, headers=session_headers, content=endless()
        )
        assert answer.status_code == 413
    except httpx.TransportError:
        pass  # the server closed the connection during the upload
    assert sent[0] < 100 * 10**6
    end = time.monotonic() + 20
    while on_disk(service) != before and time.monotonic() < end:
        time.sleep(0.05)
    assert on_disk(service) == before
    chunked = "POST /gradio_api/upload HTTP/1.1\nHost: 127.0.0.1\nTransfer-Encoding: chunked"
    assert raw(url, chunked, b"5\r\nhello\r\n").split()[1] == b"411"


@pytest.mark.parametrize("name", ["<script>alert(1)</script>.nii", "a\r\nSet-Cookie: x=1.nii", "..", "con.nii", "a" * 999 + ".nii",
                                  "$(reboot).nii", "\u202egpj.nii", "';drop table.nii"])  # fmt: skip
def test_names_of_files_have_no_effect(
    url: str, service: Service, session_headers: dict[str, str], name: str
) -> None:
    image = (service.roots[0] / "a.nii.gz").read_bytes()
    sent = WEB.post(
        f"{url}/medsam/api/upload", params={"name": name + ".gz"}, headers=session_headers, content=image
    )
    if sent.status_code == 200:
        opened = WEB.post(
            f"{url}/medsam/api/open", headers=session_headers, json={"source": "upload", **sent.json()}
        )
        assert opened.status_code == 200 and "set-cookie" not in opened.headers
        assert "html" not in opened.headers["content-type"]
        saved = WEB.get(f"{url}/medsam/api/prompts", headers=session_headers)
        assert "set-cookie" not in saved.headers and "\n" not in saved.headers["content-disposition"]
    else:
        assert sent.status_code == 422 and "html" not in sent.headers["content-type"]
    inside = [p for w in service.workspaces._by_token.values() for p in w.files.folder.rglob("*")]
    assert all(
        p.resolve().is_relative_to(Path(os.path.realpath("/tmp"))) or "medsam-" in str(p) for p in inside
    )


def test_sessions_are_private(url: str, service: Service, session_headers: dict[str, str]) -> None:
    opened = WEB.post(
        f"{url}/medsam/api/open", headers=session_headers, json={"source": "folder", "path": "a.nii.gz"}
    )
    assert opened.status_code == 200
    token = session_headers["X-Medsam-Session"]
    for forged in (
        "",
        "x" * 43,
        token[:-1],
        token + "x",
        token.swapcase(),
        "null",
        "../" + token,
        "script-" + "0" * 64,
    ):
        for method, path in (
            ("GET", "volume"),
            ("GET", "mask"),
            ("GET", "prompts"),
            ("POST", "act"),
            ("POST", "open"),
        ):
            headers = {"X-Medsam-Session": forged}
            assert WEB.request(method, f"{url}/medsam/api/{path}", headers=headers).status_code == 401, forged
    # A token in a URL or a cookie is not accepted.
    assert WEB.get(f"{url}/medsam/api/volume", params={"x_medsam_session": token}).status_code == 401
    assert (
        WEB.get(f"{url}/medsam/api/volume", headers={"Cookie": f"X-Medsam-Session={token}"}).status_code
        == 401
    )
    # A page's token does not open a script's session, and guessable ids of scripts are refused.
    for session in (token, "abc", "1"):
        call = {"data": [], "session_hash": session}
        event = WEB.post(f"{url}/gradio_api/call/save_mask", json=call).json()["event_id"]
        events = WEB.get(f"{url}/gradio_api/call/save_mask/{event}").text
        assert "event: error" in events and "nii.gz" not in events
    second = {"X-Medsam-Session": WEB.post(f"{url}/medsam/api/session").json()["token"]}
    assert WEB.get(f"{url}/medsam/api/volume", headers=second).status_code == 422


def test_other_sites_and_other_names_are_refused(url: str, session_headers: dict[str, str]) -> None:
    posts = ["/medsam/api/session", "/medsam/api/act", "/medsam/api/upload?name=a.nii", "/gradio_api/queue/join",
             "/gradio_api/call/open", "/gradio_api/upload", "/gradio_api/run/click"]  # fmt: skip
    for path in posts:
        for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
                        {"Origin": url.replace("127.0.0.1", "127.0.0.1.evil.example")}):  # fmt: skip
            assert WEB.post(url + path, headers=session_headers | headers).status_code == 403, (path, headers)
    # A host name that resolves to this server (DNS rebinding); the page's origin then equals the host.
    for host in (
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "0x7f000001",
        "[::ffff:1.2.3.4]",
    ):
        for path in ("/", "/config", "/medsam/api/files", "/medsam/static/viewer.js", "/gradio_api/info"):
            answer = WEB.get(url + path, headers={"Host": host, "Origin": f"http://{host}"})
            assert answer.status_code == 403, (host, path)
    # Other sites can neither embed the page in a frame nor read its answers.
    page = WEB.get(url)
    assert "frame-ancestors 'self'" in page.headers["content-security-policy"]
    preflight = WEB.options(f"{url}/medsam/api/act", headers={"Origin": "https://evil.example",
                          "Access-Control-Request-Method": "POST"})  # fmt: skip
    assert preflight.headers.get("access-control-allow-origin") not in ("*", "https://evil.example")
