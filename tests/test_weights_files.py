"""Where weights come from: the cache, a web server of our own, the hub, the disk."""

import hashlib
import multiprocessing
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from vidtrain.errors import InputError, UsageError
from vidtrain.models.weights.cache import cache_path
from vidtrain.models.weights.fetching import Published, cached, fetch

CONTENT = bytes(range(256)) * 9000  # more than one chunk
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILES = ("a.pth", "a.pth?x=1", "cut.pth", "page.pth", "pytorch_model.bin", "model.safetensors")
COMMIT = "0123456789" * 4


class Site(ThreadingHTTPServer):
    """A web server that counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hangs up is what is tested


class Answers(BaseHTTPRequestHandler):
    server: Site

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        name = self.path.rsplit("/", 1)[-1]
        content = b"<html>log in</html>" if name == "page.pth" else CONTENT
        if name == "moved.pth":
            self.send_response(302)
            self.send_header("Location", f"http://127.1:{self.server.server_port}/a.pth")
            self.end_headers()
            return
        if name not in FILES or "no-such" in self.path or "old-repo/resolve/main/mo" in self.path:
            self.send_response(404)
            missing = "Repo" if "no-such" in self.path else "Entry"
            self.send_header("X-Error-Code", f"{missing}NotFound")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        stated = "1" * 64 if "liar" in self.path else DIGEST
        self.send_header("ETag", f'"{stated}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 2] if name == "cut.pth" else content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve(site: Site) -> Iterator[Site]:
    thread = threading.Thread(target=site.serve_forever, args=(0.05,))
    thread.start()
    yield site
    site.shutdown()
    thread.join()
    site.server_close()


@pytest.fixture
def site(cache: Path) -> Iterator[Site]:
    yield from serve(Site())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDTRAIN_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "weights"


def get(weights: str, *published: Published) -> Any:
    return fetch(weights, published=published, say=lambda text: None)


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_file_is_downloaded_once(site: Site, cache: Path) -> None:
    said: list[str] = []
    entry = Published("K400", f"{site.url}/zoo/a.pth", DIGEST[:8])
    for _ in range(2):
        found = fetch("published", published=[entry], say=said.append)
        assert found.path == cache / site.url.removeprefix("http://") / "zoo" / "a.pth"
        assert found.path.read_bytes() == CONTENT
        assert (found.sha256, found.origin) == (DIGEST, entry.url)
    assert site.asked == ["/zoo/a.pth"]
    assert said == [f"downloading {entry.url} to {found.path}"]
    assert found.path.stat().st_mode & 0o444 == 0o444
    assert cached(found.origin) == found.path
    assert len(files_in(cache)) == 1


def test_files_of_one_name_are_kept_apart(site: Site) -> None:
    paths = {get(f"{site.url}/{name}").path for name in ("k/a.pth", "s/a.pth", "k/a.pth?x=1")}
    assert len(paths) == 3


def test_without_a_published_digest_the_first_is_kept(site: Site, cache: Path) -> None:
    found = get(f"{site.url}/a.pth")
    note = found.path.with_name("a.pth.sha256")
    assert note.read_text() == f"{DIGEST}  a.pth\n"
    assert get(f"{site.url}/a.pth").path == found.path
    found.path.write_bytes(b"something else")
    with pytest.raises(InputError, match=f"expected sha256 {DIGEST}, found .*has been removed"):
        get(f"{site.url}/a.pth")
    assert files_in(cache) == []
    assert get(f"{site.url}/a.pth").sha256 == DIGEST


@pytest.mark.parametrize(
    ("name", "digest", "message"),
    [
        ("a.pth", "12345678", rf"expected sha256 12345678, found {DIGEST}"),
        ("cut.pth", None, f"the connection ended after {len(CONTENT) // 2} of {len(CONTENT)} byt"),
        ("page.pth", None, "what came is a web page"),
        ("none.pth", None, "the server answers 404 Not Found"),
        ("moved.pth", None, r"http://127\.1:\d+/a\.pth could be exchanged on the way"),
    ],
)
def test_a_bad_download_leaves_nothing(
    site: Site, cache: Path, name: str, digest: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        get("published", Published("K400", f"{site.url}/{name}", digest))
    assert files_in(cache) == []


def test_without_network_it_says_what_to_put_where(site: Site, cache: Path) -> None:
    url = f"{site.url}/zoo/a.pth"
    site.shutdown()
    site.server_close()
    with pytest.raises(InputError, match="Connection refused") as caught:
        get("published", Published("K400", url, DIGEST))
    path = cache_path(url)
    assert url in str(caught.value) and f"put it at {path}" in str(caught.value)
    path.write_bytes(CONTENT)
    assert get("published", Published("K400", url, DIGEST)).path == path
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match=r"expected sha256 .*it has been removed"):
        get("published", Published("K400", url, DIGEST))


def test_the_layout_is_that_of_wget(cache: Path) -> None:
    assert (
        cache_path("https://u:p@host.org:81/a/../%2e%2e/b%20c.pth")
        == cache / "host.org:81/a/b c.pth"
    )
    with pytest.raises(UsageError, match="names no file"):
        get("https://host.org/")


def test_http_needs_a_digest(cache: Path) -> None:
    with pytest.raises(UsageError, match="could be exchanged on the way; use https://"):
        get("http://weights.invalid/a.pth")
    path = cache_path("http://weights.invalid/a.pth")
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert get(f"http://weights.invalid/a.pth#sha256={DIGEST}").path == path


def test_a_certificate_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("there is no openssl to make a certificate with")
    site = Site()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    site.socket = context.wrap_socket(site.socket, server_side=True)
    url = site.url.replace("http:", "https:") + "/a.pth"
    for _ in serve(site):
        with pytest.raises(InputError, match="certificate verify failed"):
            get(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert get(url).sha256 == DIGEST


def _fetch_in_process(url: str) -> str:
    found = get(url)
    return hashlib.sha256(found.path.read_bytes()).hexdigest()


def test_processes_do_not_disturb_each_other(site: Site, cache: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert set(pool.map(_fetch_in_process, [f"{site.url}/a.pth"] * 8)) == {DIGEST}
    folder = cache_path(f"{site.url}/a.pth").parent
    assert files_in(folder) == ["a.pth", "a.pth.sha256"]


def test_a_file_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.pth").write_bytes(CONTENT)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in (str(tmp_path / "mine.pth"), "~/mine.pth"):
        found = get(given)
        assert (found.path, found.sha256, found.origin) == (tmp_path / "mine.pth", DIGEST, given)
    with pytest.raises(InputError, match=r"no such file; did you mean mine\.pth\?"):
        get(str(tmp_path / "mina.pth"))
    with pytest.raises(InputError, match=r"that is a folder \(it holds mine\.pth\)"):
        get(str(tmp_path))
    with pytest.raises(InputError, match="there is no folder none; give published, published:DAT"):
        get("none/a.pth")


def test_published_picks_by_data_set(site: Site) -> None:
    entries = [
        Published("IN1k"),
        Published("K400", f"{site.url}/k/a.pth"),
        Published("SSv2", f"{site.url}/s/a.pth"),
    ]
    assert get("published", *entries).origin == entries[1].url
    assert get("published:SSV2", *entries).origin == entries[2].url
    with pytest.raises(UsageError, match="on UCF101; there are published:K400, published:SSv2"):
        get("published:UCF101", *entries)
    with pytest.raises(UsageError, match=r"only figures .* are published on in1k, no file; there"):
        get("published:in1k", *entries)
    with pytest.raises(UsageError, match="no weights of this model are published; leave weights"):
        get("published", entries[0])


@pytest.mark.parametrize("weights", ["s3://bucket/a.pth", "hf:only-a-name", "hf:o/r@x@y", "hf:"])
def test_other_forms_are_refused(weights: str) -> None:
    with pytest.raises(UsageError, match="hf:ORG/REPO"):
        get(weights)


@pytest.fixture
def hub(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", site.url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                        site.url + "/{repo_id}/resolve/{revision}/{filename}")  # fmt: skip
    return site


def test_the_hub(hub: Site, cache: Path) -> None:
    assert cached("hf:org/repo") is None
    found = get("hf:org/repo")
    assert found.path.name == "model.safetensors" and found.sha256 == DIGEST
    assert hub.asked[-1] == "/org/repo/resolve/main/model.safetensors"
    assert cached("hf:org/repo") == found.path
    assert get("hf:org/old-repo").path.name == "pytorch_model.bin"
    deep = get("hf:org/repo/deep/pytorch_model.bin@v2").path
    assert deep.parts[-2:] == ("deep", "pytorch_model.bin")
    with pytest.raises(InputError, match=r"the repository has none of deep/x\.bin; name a file"):
        get("hf:org/repo/deep/x.bin")
    with pytest.raises(InputError, match="org/no-such has no revision main, does not exist, or"):
        get("hf:org/no-such")
    assert files_in(cache) == []


def test_what_the_hub_states_is_checked(hub: Site) -> None:
    with pytest.raises(InputError, match=f"expected sha256 {'1' * 64}, found {DIGEST}; it has"):
        get("hf:org/liar")
    assert cached("hf:org/liar") is None
    with pytest.raises(InputError, match="expected sha256 abcdabcd, found"):
        get("published", Published("K400", "hf:org/repo", "abcdabcd"))


def test_the_hub_without_network(hub: Site, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    path = cache / "huggingface.co/org/repo/resolve/main/model.safetensors"
    with pytest.raises(
        InputError, match=f"resolve/main/model.safetensors cannot .* put it at {path}"
    ):
        get("hf:org/repo")
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert get("hf:org/repo").path == cached("hf:org/repo") == path
    assert files_in(path.parent) == ["model.safetensors", "model.safetensors.sha256"]
