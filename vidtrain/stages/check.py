"""Decode every file of a data set wholly, say which are bad, and list those to leave out."""

import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from vidtrain import interrupt, survey
from vidtrain.config.data import CheckConfig
from vidtrain.data.checking import BAD, VERSION, WARN
from vidtrain.data.checking_pool import check_files
from vidtrain.data.checking_sums import read_sums
from vidtrain.data.quarantine import stamp
from vidtrain.data.video import Video
from vidtrain.errors import InputError, Interrupted, UsageError
from vidtrain.records import runlog

MAX_NAMED = 3  # examples of a reason; all are in results.jsonl
MAX_LISTED = 10  # bad files that the last line names
LIMITS = {"hang": "timeout_seconds", "memory": "memory_gib"}  # reason -> setting that it hit
QUARANTINED = ("path", "id", "size", "mtime_ns", "sha256", "reason")

Row = dict[str, Any]


def check(config: CheckConfig) -> None:
    """Prints a table, and writes results.jsonl, summary.json and quarantine.jsonl.

    Raises:
        InputError: Bad files were found; or the lists cannot be made, or the folder not written.
        Interrupted: By a signal; the same command goes on.
        UsageError: A setting is wrong.
    """
    _refuse_wrong_settings(config)
    folder = Path(os.path.expanduser(config.output))
    survey.refuse_other_data(folder / "summary.json", config.data.root)
    videos = _listed(config)
    paths = list(dict.fromkeys(video.path for video in videos))
    sums: dict[str, str] = {}
    if config.sums is not None:
        sums = read_sums(config.sums, paths, os.path.expanduser(config.data.root))
    with runlog.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    rows = _earlier(folder / "results.jsonl")
    ids = {video.path: video.id for video in reversed(videos)}
    todo = [path for path in paths if _is_due(rows.get(path), path, sums.get(path), config)]
    known = len(paths) - len(todo)
    if known:
        runlog.console.print(f"{known} of {len(paths)} files are as they were checked before")
    _run(config, todo, sums, ids, rows, folder / "results.jsonl")
    _write(folder / "results.jsonl", rows.values())
    bad = [row for row in rows.values() if row["status"] == "bad"]
    _write(folder / "quarantine.jsonl", [{key: row[key] for key in QUARANTINED} for row in bad])
    found = [rows[path] for path in paths]
    result = {
        "data": config.data.name, "root": config.data.root, "splits": list(config.splits),
        **summarise(found, videos, rows),
        "without_sum": len(paths) - len(sums) if config.sums is not None else None,
    }  # fmt: skip
    runlog.write_json(folder / "summary.json", result)
    show(result)
    print(f"written to {folder}: results.jsonl, summary.json, quarantine.jsonl")
    _end(found, folder, result["entries_outside_their_file"])


def _refuse_wrong_settings(config: CheckConfig) -> None:
    for name in LIMITS.values():
        if getattr(config, name) <= 0:
            raise UsageError(f"{name}={getattr(config, name):g} must be more than 0")
    if config.sums is not None:
        own = Path(os.path.expanduser(config.output)) / "results.jsonl"
        if own.resolve() == Path(os.path.expanduser(config.sums)).resolve():
            raise UsageError(
                f"sums={config.sums} is what this check writes itself; give another output="
            )


def _listed(config: CheckConfig) -> list[Video]:
    """Returns the videos of the splits, those in quarantine too."""
    data = dataclasses.replace(config.data, quarantine=None)
    listed = survey.videos_of(config, data)
    return [video for found in listed.values() for video in found.videos]


def _earlier(file: Path) -> dict[str, Row]:
    """Returns what an earlier check wrote, by path, without a last line that a kill cut."""
    rows: dict[str, Row] = {}
    try:
        lines = file.read_text("utf-8").splitlines() if file.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read ({error}); give another output=") from None
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows[row["path"]] = row
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise InputError(
                    f"{file}, line {number}: {line[:80]!r} is no result of a check; give another "
                    "output=, or delete the file"
                ) from None
    return {path: row for path, row in rows.items() if row.get("version") == VERSION}


def _is_due(row: Row | None, path: str, stated: str | None, config: CheckConfig) -> bool:
    """Returns whether a file is to be decoded."""
    if row is None or (row["size"], row["mtime_ns"]) != (stamp(path) or (None, None)):
        return True
    if stated is not None and stated != row["stated_sha256"]:
        return True
    limit = LIMITS.get(row["reason"])
    return row["reason"] == "crash" or (limit is not None and getattr(config, limit) > row[limit])


def _run(
    config: CheckConfig, todo: Sequence[str], sums: dict[str, str], ids: dict[str, str],
    rows: dict[str, Row], file: Path,
) -> None:  # fmt: skip
    """Checks files and adds their rows, here and to the file, as they come."""
    found = check_files(
        [(path, sums.get(path)) for path in todo], workers=survey.num_processes(config.workers),
        timeout=config.timeout_seconds, memory_bytes=int(config.memory_gib * 2**30),
    )  # fmt: skip
    limits = {name: getattr(config, name) for name in LIMITS.values()} | {"version": VERSION}
    done, bad = 0, 0
    _write(file, rows.values())  # without what is stale or cut
    with runlog.writing(file):
        out = open(file, "a", encoding="utf-8")  # noqa: SIM115
    counter = survey.counting("check", len(todo), "files")
    with out, counter as advance, closing(found), interrupt.deferred() as stop:
        for row in found:
            if row is not None:
                path = row["path"]
                rows[path] = {"id": ids[path], **row, "stated_sha256": sums.get(path), **limits}
                with runlog.writing(file):
                    out.write(json.dumps(rows[path]) + "\n")
                    out.flush()
                done, bad = done + 1, bad + (row["status"] == "bad")
            if stop.signum:
                raise Interrupted(
                    stop.signum,
                    f"stopped after {done} of {len(todo)} files; the same command goes on",
                )
            advance(int(row is not None), f", {bad} bad")


def _write(file: Path, rows: Any) -> None:
    # ASCII, since names of files need not be text.
    runlog.write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


def summarise(found: Sequence[Row], videos: Sequence[Video], rows: dict[str, Row]) -> Row:
    """Returns counts by status and by reason, with examples.

    Args:
        found: The row of each file.
        videos: The entries of the list, of which several may use one file.
        rows: Rows by path.
    """
    reasons: dict[str, list[Row]] = defaultdict(list)
    for row in found:
        if row["reason"] is not None:
            reasons[row["reason"]].append(row)
    outside = [video.id for video in videos if not _has(rows[video.path], video)]
    return {
        "files": len(found),
        "statuses": {s: sum(row["status"] == s for row in found) for s in ("ok", "warn", "bad")},
        "reasons": {
            reason: {
                "status": members[0]["status"], "files": len(members),
                "examples": [{"id": printable(row["id"]), "detail": printable(row["detail"])}
                             for row in members[:MAX_NAMED]],
            }
            for reason in (*BAD, *WARN) if (members := reasons[reason])
        },
        "safe_route": sum(row.get("route") not in ("fast", "images", None) for row in found),
        "entries_outside_their_file": [printable(name) for name in outside],
        "decoded_frames": sum(row.get("decoded_frames") or 0 for row in found),
        "hours": sum(row.get("found_seconds") or 0 for row in found) / 3600,
    }  # fmt: skip


def _has(row: Row, video: Video) -> bool:
    """Returns whether a file has the frames, or the beginning of the times, that an entry names."""
    frames, seconds = row.get("decoded_frames"), row.get("found_seconds")
    if row["status"] == "bad" or frames is None:
        return True
    if video.start is not None:
        return seconds is None or video.start < seconds
    return video.first_frame + (video.num_frames or 1) <= frames


def printable(text: str) -> str:
    """Returns a text that fits on a line and can be written anywhere."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return shown.encode("utf-8", "backslashreplace").decode()


def show(result: Row) -> None:
    """Prints the counts on standard output."""
    out = Console(highlight=False)
    if result["reasons"]:
        example = Column("for example", overflow="fold")
        table = Table("", "reason", "files", "meaning", example, show_lines=True)
        for reason, told in result["reasons"].items():
            names = [escape(example["id"]) for example in told["examples"]]
            if told["files"] > len(names):
                names.append("...")
            table.add_row(told["status"], reason, str(told["files"]),
                          BAD.get(reason) or WARN[reason], "\n".join(names))  # fmt: skip
        out.print(table)
    counts = result["statuses"]
    out.print(
        f"{result['files']} files, {result['decoded_frames']} frames: {counts['ok']} ok, "
        f"{counts['warn']} to look at, {counts['bad']} bad"
    )
    if result["safe_route"]:
        out.print(f"{result['safe_route']} files are decoded from their beginning (see route)")
    if result["without_sum"]:
        out.print(f"{result['without_sum']} files have no SHA-256 sum in sums=")
    if outside := result["entries_outside_their_file"]:
        named = ", ".join(map(escape, outside[:MAX_NAMED])) + ", ..." * (len(outside) > MAX_NAMED)
        out.print(f"{len(outside)} entries name frames that their file does not have: {named}")


def _end(found: Sequence[Row], folder: Path, outside: Sequence[str]) -> None:
    """Says so, and ends with exit code 1, where files are bad or entries wrong."""
    bad = [row for row in found if row["status"] == "bad"]
    if outside and not bad:
        raise InputError(
            f"{len(outside)} entries name frames that their file does not have, for example "
            f"{outside[0]}; correct the list"
        )
    if not bad:
        return
    lines = [f"\n  {printable(row['id'])}: {row['reason']}" for row in bad[:MAX_LISTED]]
    if len(bad) > MAX_LISTED:
        lines.append(f"\n  and {len(bad) - MAX_LISTED} more")
    raise InputError(
        f"{len(bad)} of {len(found)} files are bad; mend them, or let training leave them out with "
        f"data.quarantine={folder / 'quarantine.jsonl'}{''.join(lines)}"
    )
