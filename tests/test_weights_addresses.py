"""What an address of weights may be, what is shown of it, and whose digest decides."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from test_weights_files import CONTENT, DIGEST, Answers, Site, files_in, get, serve

from vidtrain.errors import InputError, UsageError
from vidtrain.models.weights.cache import cache_path
from vidtrain.models.weights.fetching import Published, cached, fetch, spec_of

OTHER = hashlib.sha256(b"other").hexdigest()


class Hops(Answers):
    """Answers of a server that sends on, to where the name in the address says."""

    def answer(self, *, body: bool) -> None:
        port = self.server.server_port
        there = {
            "open": f"http://127.1:{port}/back",  # no name of this machine, as far as is known
            "back": f"http://127.0.0.1:{port}/a.pth",
            "file": "file:///etc/passwd?token=secret",
            "broken": "http://[::1/x",
        }
        name = self.path.rsplit("/", 1)[-1].partition("?")[0]
        if name in there:
            self.send_response(302)
            self.send_header("Location", there[name])
            self.end_headers()
            return
        self.path = self.path.partition("?")[0]
        super().answer(body=body)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDTRAIN_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "weights"


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()
    site.RequestHandlerClass = Hops
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", site.url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                        site.url + "/{repo_id}/resolve/{revision}/{filename}")  # fmt: skip
    yield from serve(site)


def put(url: str, content: bytes = CONTENT) -> Path:
    """Lays a file into the cache by hand."""
    path = cache_path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "host",
    ["..", ".", "", ":80", "a..b", "..:80", "u@..", "%2e%2e", "a b", "[::1", "[::g]", "h:x",
     "h:99999", "l" * 64 + ".org", "\u3002\u3002"],
)  # fmt: skip
def test_a_host_is_a_name_or_a_number(folder: Path, host: str) -> None:
    victim = folder.parent / "victim.pth"
    victim.write_bytes(CONTENT)
    with pytest.raises(UsageError, match="is no address of a file"):
        get(f"https://{host}/victim.pth#sha256={OTHER}")
    with pytest.raises(UsageError, match="is no address of a file"):
        cached(f"https://{host}/victim.pth")
    assert files_in(folder.parent) == ["victim.pth"] and victim.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("Host.org", "host.org"),
        ("host.org:8443", "host.org:8443"),
        ("my_host", "my_host"),
        ("10.0.0.7:80", "10.0.0.7:80"),
        ("[::1]:80", "[::1]:80"),
        ("b\u00fccher.example", "xn--bcher-kva.example"),
    ],
)
def test_proper_hosts(folder: Path, host: str, name: str) -> None:
    assert cache_path(f"https://{host}/a.pth") == folder / name / "a.pth"


@pytest.mark.parametrize("end", ["%00.pth", "a%0a.pth"])
def test_names_of_files_can_be_written(end: str) -> None:
    with pytest.raises(UsageError, match="has control characters"):
        get(f"https://host.org/{end}")


@pytest.mark.parametrize(
    ("weights", "what"),
    [
        ("hf:../..", "../.. is no name of a repository"),
        ("hf:o/..", "o/.. is no name of a repository"),
        ("hf:o/-r", "o/-r is no name of a repository"),
        ("hf:o/r/../x", "../x is no name of a file"),
        ("hf:o/r/a//x", "a//x is no name of a file"),
        ("hf:o/r/x@../v", "../v is no name of a revision"),
    ],
)
def test_names_of_the_hub(folder: Path, weights: str, what: str) -> None:
    for call in (get, cached):
        with pytest.raises(UsageError, match=f"{what}; give hf:ORG/REPO".replace(".", r"\.")):
            call(weights)


def test_letters_that_addresses_cannot_have_are_encoded(server: Site) -> None:
    assert get(f"{server.url}/\u00fc x/a.pth").path.parent.name == "\u00fc x"
    assert server.asked == ["/%C3%BC%20x/a.pth"]


def test_a_query_is_neither_shown_nor_too_long(server: Site, folder: Path) -> None:
    said: list[str] = []
    query = "token=secret&" + "x" * 3000
    for _ in range(2):
        found = fetch(f"{server.url}/a.pth?{query}", say=said.append)
    assert found.path.name == "a.pth?" + hashlib.sha256(query.encode()).hexdigest()[:16]
    assert found.origin == f"{server.url}/a.pth"
    assert said == [f"downloading {found.origin} to {found.path}"]
    assert server.asked == [f"/a.pth?{query}"]
    assert cached(f"{server.url}/a.pth?{query}") == found.path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.pth?token=secret", "none.pth cannot be downloaded: the server answers 404"),
        ("page.pth?token=secret", "page.pth did not answer with weights"),
        (f"a.pth?token=secret#sha256={OTHER}", f"a.pth is not the .*: expected sha256 {OTHER}, f"),
        ("a.pth?token=secret#sha256=1", "a.pth: 1 has 1 digits"),
        ("file?x", r"file:///etc/passwd\?\.\.\."),
        ("broken", "broken cannot be downloaded: "),
    ],
)
def test_errors_hide_the_query(server: Site, folder: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        get(f"{server.url}/{name}")
    assert "secret" not in str(caught.value)
    assert files_in(folder) == []


@pytest.mark.parametrize("url", ["http://u:secret@h.org/a.pth?secret", "s3://b/a.pth?secret"])
def test_refusals_hide_user_and_query(url: str) -> None:
    with pytest.raises(UsageError, match=r"(h\.org|b)/a\.pth") as caught:
        get(url)
    assert "secret" not in str(caught.value)


def test_names_that_no_disk_takes(tmp_path: Path) -> None:
    long = "n" * 300 + ".pth"
    put("https://host.invalid/a.pth")
    with pytest.raises(InputError, match=r"cannot be downloaded: .*too long"):
        get(f"https://host.invalid/{long}")
    assert cached(f"https://host.invalid/{long}") is None
    with pytest.raises(InputError, match=r"cannot be read: .*too long"):
        get(str(tmp_path / long))
    with pytest.raises(InputError, match="cannot be read: "):
        get("~no-such-user/a.pth")


@pytest.mark.parametrize(
    ("behind", "wrong"),
    [
        ("sha256=", "nothing has 0 digits"),
        ("sha256=12345678", "12345678 has 8 digits"),
        ("sha256=" + "g" * 64, "g{64} is not hexadecimal"),
        ("sha=" + DIGEST, "#sha is not known"),
        ("", "# is not known"),
    ],
)
def test_a_typed_digest_is_whole(folder: Path, behind: str, wrong: str) -> None:
    path = put("https://host.org/a.pth")
    with pytest.raises(UsageError, match=f"{wrong}; only #sha256=64_HEX_DIGITS may follow"):
        get(f"https://host.org/a.pth#{behind}")
    assert files_in(folder) == [str(path.relative_to(folder))]


@pytest.mark.parametrize("digest", ["", "1234567", "g2345678", "1" * 65])
@pytest.mark.parametrize("url", ["https://host.org/a.pth", "hf:o/r"])
def test_a_published_digest_has_8_digits_or_more(url: str, digest: str) -> None:
    put("https://host.org/a.pth")
    with pytest.raises(UsageError, match="is no digest; give 8 to 64 hex digits, or null"):
        get("published", Published("K400", url, digest))


def test_a_typed_digest_removes_nothing(folder: Path) -> None:
    url = "https://host.org/a.pth"
    path = put(url)
    for _ in range(2):  # before and after a digest is noted
        with pytest.raises(InputError, match=f"#sha256= is {OTHER}, found {DIGEST}; it stays"):
            get(f"{url}#sha256={OTHER}")
        assert path.read_bytes() == CONTENT
        assert get(f"{url}#sha256={DIGEST.upper()}").path == path
        assert path.with_name("a.pth.sha256").read_text().startswith(DIGEST)
    path.write_bytes(b"other")  # what the user typed does not excuse it
    with pytest.raises(InputError, match=f"sha256 {DIGEST}, found {OTHER}; it has been removed"):
        get(f"{url}#sha256={OTHER}")
    assert files_in(folder) == []


def test_every_hop_is_checked(server: Site, folder: Path) -> None:
    with pytest.raises(UsageError, match=r"http://127\.1:\d+/back could be exchanged on the way"):
        get(f"{server.url}/open")
    assert server.asked == ["/open"] and files_in(folder) == []
    assert get(f"{server.url}/open#sha256={DIGEST}").sha256 == DIGEST
    assert get(f"{server.url}/back").sha256 == DIGEST


def entries(server: str) -> list[Published]:
    return [
        Published("UCF101"),
        Published("K400", f"{server}/1/a.pth"),
        Published("K400"),
        Published("SSv2", f"{server}/2/a.pth"),
        Published("k400", f"{server}/3/a.pth"),
        Published("K400", f"{server}/4/a.pth"),
    ]


def test_the_shortest_name_of_each_published_file(server: Site) -> None:
    published = entries(server.url)
    specs = [spec_of(published, index) for index in range(len(published))]
    assert specs == [None, "published", None, "published:SSv2", "published:k400:2",
                     "published:K400:3"]  # fmt: skip
    for spec, entry in zip(specs, published, strict=True):
        if spec:
            assert get(spec, *published).origin == entry.url
    assert get("published:K400:1", *published).origin == published[1].url


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("K400:4", "4 is not a number from 1 to 3; there are published:K400, published:SSv2, pub"),
        ("K400:0", "0 is not a number from 1 to 3"),
        ("K400:", "nothing is not a number from 1 to 3"),
        ("K400:-1", "-1 is not a number"),
        ("UCF101:1", "only figures of this model are published on UCF101, no file"),
        ("2", "no weights of this model are published on 2; there are"),
        (":2", "no weights of this model are published on ; there are"),
    ],
)
def test_numbers_that_no_file_has(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        get(f"published:{spec}", *entries("https://host.org"))


def test_the_hub_offline_takes_either_name(
    server: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = get("hf:org/old-repo")
    assert found.path.name == "pytorch_model.bin"
    for noted in folder.parent.glob("hub/*/.no_exist"):
        shutil.rmtree(noted)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert get("hf:org/old-repo") == found
    said: list[str] = []
    with pytest.raises(InputError, match=r"model\.safetensors cannot be downloaded"):
        fetch("hf:org/other", say=said.append)
    assert [text.split()[-1] for text in said] == ["model.safetensors", "pytorch_model.bin"]
    found.path.resolve().write_bytes(b"other")
    with pytest.raises(InputError, match=f"expected sha256 {DIGEST}, found {OTHER}; it has been"):
        get("hf:org/old-repo")
    assert cached("hf:org/old-repo") is None
