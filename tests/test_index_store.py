"""The index file survives whatever processes, disks and people do to it."""

import multiprocessing
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO

from vidtrain.data.index_store import BATCH_SECONDS, IndexStore, default_path

VALUE = bytes(range(256)) * 20
WRITER = """
import sys
from vidtrain.data.index_store import IndexStore
store = IndexStore(sys.argv[1], 1)
number = 0
while True:
    store.put(f"{sys.argv[2]}-{number}", number, number, bytes([number % 256]) * 5000)
    if number % 100 == 50:
        store.flush()
        print(number, flush=True)
    number += 1
"""


def content(file: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(file) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = db.execute("SELECT key, size, mtime_ns, value FROM entries").fetchall()
    db.close()
    return rows


def fill(store: IndexStore, name: str, rows: int) -> None:
    """Ends without closing: the end of the process is to write the rest."""
    for number in range(rows):
        store.put(f"{name}-{number}", number, number, f"{name} {number}".encode() * 100)


def test_values_stay_and_are_bound_to_size_and_time(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "index.sqlite"
    store = IndexStore(str(file), 1)
    assert store.get("a", 1, 2) is None
    store.put("a", 1, 2, VALUE)
    store.put("not text \udcff", 3, 4, b"")
    assert store.get("a", 1, 2) == VALUE  # not written yet
    store.close()
    assert len(content(file)) == 2
    for again in (store, IndexStore(str(file), 1)):
        assert again.get("a", 1, 2) == VALUE
        assert again.get("not text \udcff", 3, 4) == b""
        assert again.get("a", 2, 2) is None
        assert again.get("a", 1, 3) is None
        assert again.get("b", 1, 2) is None
    store.put("a", 5, 6, b"changed")
    store.flush()
    again.close()
    assert again.get("a", 5, 6) == b"changed"
    assert again.get("a", 1, 2) is None


def test_rows_are_written_in_batches_and_after_a_while(tmp_path: Path) -> None:
    file = tmp_path / "index.sqlite"
    store, other = IndexStore(str(file), 1), IndexStore(str(file), 1)
    fill(store, "x", 63)
    assert other.get("x-0", 0, 0) is None
    fill(store, "y", 1)
    assert other.get("x-0", 0, 0) is not None
    store.put("late", 1, 1, VALUE)
    assert other.get("late", 1, 1) is None
    time.sleep(BATCH_SECONDS + 0.1)
    store.get("anything", 1, 1)
    assert other.get("late", 1, 1) == VALUE


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_many_processes_write_at_once(tmp_path: Path, method: str) -> None:
    file = tmp_path / "index.sqlite"
    store = IndexStore(str(file), 1)
    store.put("mine", 1, 1, VALUE)  # open and waiting when the others are forked
    context: Any = multiprocessing.get_context(method)
    processes = [context.Process(target=fill, args=(store, f"p{n}", 200)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    store.close()
    rows = content(file)
    assert len(rows) == 4 * 200 + 1
    for number in range(4):
        assert store.get(f"p{number}-199", 199, 199) == f"p{number} 199".encode() * 100
    assert pickle.loads(pickle.dumps(store)).get("mine", 1, 1) == VALUE


def cut_in_half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def overwrite_the_middle(file: Path) -> None:
    size = file.stat().st_size
    with open(file, "r+b") as opened:
        opened.seek(4096)
        opened.write(os.urandom(size - 4096))


def empty(file: Path) -> None:
    os.truncate(file, 0)


def drop_table(file: Path) -> None:
    with sqlite3.connect(file) as db:
        db.execute("DROP TABLE entries")
    db.close()


@pytest.mark.parametrize(
    "harm", [cut_in_half, overwrite_the_middle, empty, drop_table, Path.unlink]
)
@pytest.mark.parametrize("while_open", [False, True])
def test_a_damaged_file_is_made_anew(tmp_path: Path, harm: Any, while_open: bool) -> None:
    file = tmp_path / "index.sqlite"
    store = IndexStore(str(file), 1)
    fill(store, "x", 640)
    store.flush()
    if not while_open:
        store.close()
    harm(file)
    for name in ("y", "z"):  # pages may lie in the first process's memory: the second must see
        for number in range(640):
            found = store.get(f"x-{number}", number, number)
            assert found in (None, f"x {number}".encode() * 100)
        fill(store, name, 640)
        store.close()
        assert store.get(f"{name}-639", 639, 639) == f"{name} 639".encode() * 100
        store.close()
        store = IndexStore(str(file), 1)
    assert len(content(file)) >= 640


def test_a_changed_value_is_not_returned(tmp_path: Path) -> None:
    file = tmp_path / "index.sqlite"
    store = IndexStore(str(file), 1)
    store.put("a", 1, 1, VALUE)
    store.close()
    with sqlite3.connect(file) as db:
        db.execute("UPDATE entries SET value = ?", (VALUE[::-1],))
    db.close()
    assert store.get("a", 1, 1) is None


def test_another_version_is_made_anew_and_other_files_are_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "index.sqlite"
    old = IndexStore(str(file), 1)
    old.put("a", 1, 1, VALUE)
    old.close()
    new = IndexStore(str(file), 2)
    assert new.get("a", 1, 1) is None
    new.put("a", 1, 1, b"new")
    new.close()
    assert new.get("a", 1, 1) == b"new"
    assert os.listdir(tmp_path) == [file.name]
    assert capsys.readouterr().err == ""

    notes = tmp_path / "notes.txt"
    notes.write_text("not an index\n" * 1000)
    store = IndexStore(str(notes), 1)
    store.put("a", 1, 1, VALUE)
    store.close()
    assert store.get("a", 1, 1) is None
    assert notes.read_text() == "not an index\n" * 1000
    assert len(os.listdir(tmp_path)) == 2
    assert "this is another file, no video index" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["a folder", "below a file", "read only", "below read only"])
def test_a_place_that_cannot_be_written_is_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    file = tmp_path / "place" / "index.sqlite"
    if place == "below a file":
        (tmp_path / "place").write_text("a file")
    elif place == "a folder":
        file.mkdir(parents=True)
    elif os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    else:
        file.parent.mkdir()
        if place == "read only":
            IndexStore(str(file), 1).close()
            file.chmod(0o400)
        file.parent.chmod(0o500)
    store = IndexStore(str(file), 1)
    for number in range(200):
        store.put(f"{number}", 1, 1, VALUE)
        store.get(f"{number}", 1, 1)
    store.close()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(file) in said and "data.index" in said


def test_a_locked_file_delays_but_does_not_stop(tmp_path: Path) -> None:
    file = tmp_path / "index.sqlite"
    store = IndexStore(str(file), 1)
    store.put("a", 1, 1, VALUE)
    store.close()
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    start = time.perf_counter()
    assert store.get("a", 1, 1) is None
    fill(store, "x", 500)
    for number in range(500):
        store.get(f"z-{number}", 1, 1)
    assert time.perf_counter() - start < 1.5
    other.execute("COMMIT")
    other.close()
    store.close()
    assert store.get("x-499", 499, 499) is not None
    assert store.get("a", 1, 1) == VALUE


def test_a_full_disk_does_not_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit on the size of files fails like a full disk, without being one."""
    code = (
        "import resource, signal, sys\n"
        "from vidtrain.data.index_store import IndexStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))\n"
        "store = IndexStore(sys.argv[1], 1)\n"
        "for number in range(1000): store.put(str(number), 1, 1, bytes(5000))\n"
        "print(store.get('0', 1, 1) == bytes(5000), store.get('999', 1, 1))\n"
        "store.close()\n"
    )
    file = tmp_path / "index.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        cwd=REPO, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True None\n"
    assert done.stderr.count("\n") == 1 and str(file) in done.stderr
    content(file)


def test_kill_while_writing(tmp_path: Path) -> None:
    file = tmp_path / "index.sqlite"
    for turn in range(6):
        names = [f"{turn}a", f"{turn}b"]
        processes = []
        for name in names:
            command = [sys.executable, "-c", WRITER, str(file), name]
            processes.append(subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True))
        kept = {}
        for name, process in zip(names, processes, strict=True):
            assert process.stdout is not None
            kept[name] = [int(process.stdout.readline()) for _ in range(1 + turn)][-1]
        time.sleep(0.013 * turn)
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        store = IndexStore(str(file), 1)
        for name, number in kept.items():
            for earlier in range(number + 1):
                assert store.get(f"{name}-{earlier}", earlier, earlier) is not None
        store.put(f"after {turn}", 1, 1, VALUE)
        store.close()
        rows = content(file)
        assert all(value == VALUE or value == bytes([size % 256]) * 5000
                   for _, size, _, value in rows)  # fmt: skip
    assert store.get("0a-0", 0, 0) == bytes(5000)
    assert store.get("after 0", 1, 1) == VALUE
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_default_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDTRAIN_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = default_path("mine", str(tmp_path / "data"))
    assert path.parent == tmp_path / "index"
    assert path.match("mine-????????.sqlite")
    assert default_path("mine", "data") == path != default_path("mine", "other")
