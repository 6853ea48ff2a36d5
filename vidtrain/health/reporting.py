"""What all processes found, put together and shown."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from vidtrain.health.findings import Finding, Line, Member, merged, place

# Kinds of line that share a row of the table while they are good; what stands between name and
# value.
FOLDED = {"package": " ", "variable": "="}


@dataclass
class Report:
    """What is known so far; on other ranks than 0 it stays empty.

    Attributes:
        members: All processes, by rank.
        found: What each process found, by rank.
        lines: What follows from the comparison of processes.
        measured: The figures behind those lines, for scripts.
        token: The file that is there for the others to see, while it is.
    """

    members: dict[int, Member]
    found: dict[int, list[Finding]] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    token: tuple[int, str, str] | None = None

    def add(self, answers: dict[int, Any]) -> None:
        """Adds findings of processes, by rank, as they come from the store."""
        for rank, rows in answers.items():
            self.found.setdefault(rank, []).extend(Finding(**row) for row in rows)

    def all_lines(self) -> list[Line]:
        """Returns every line, those of one process first."""
        return [*merged(self.found, self.members), *self.lines]

    def failed(self) -> list[str]:
        """Returns the subjects of what would stop a training."""
        return list(dict.fromkeys(
            line.subject for line in self.all_lines() if line.verdict == "fail"))  # fmt: skip


def show(report: Report, *, as_json: bool) -> None:
    """Prints the findings: a table, or JSON."""
    lines, members = report.all_lines(), report.members
    if as_json:
        print(json.dumps({
            "ok": not report.failed(), "world_size": next(iter(members.values())).size,
            "hosts": {rank: member.host for rank, member in members.items()},
            "findings": [dataclasses.asdict(row) for row in lines], "measured": report.measured,
        }, indent=2), flush=True)  # fmt: skip
        return
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    many = len(members) > 1
    table = Table(*(
        Column(name, overflow="fold") for name in ("check", "", *(["on"] if many else []), "found")
    ))  # fmt: skip
    same = [row for row in lines if row.verdict == "ok" and len(row.ranks) in (0, len(members))]
    for kind, joint in FOLDED.items():
        good = [row for row in same if row.subject.startswith(f"{kind} ")]
        if good:
            text = ", ".join(f"{row.subject.split()[1]}{joint}{row.found}" for row in good)
            table.add_row(f"{kind}s", "[green]ok", *([""] if many else []), escape(text))
    rest = [row for row in lines if row not in same or row.subject.split()[0] not in FOLDED]
    for row in sorted(rest, key=lambda row: row.verdict == "fail"):  # what matters stands last
        text = escape(f"{row.found}\n→ {row.remedy}" if row.remedy else row.found)
        on = place(row.ranks, members) if row.ranks else ""
        verdict = f"[{colours[row.verdict]}]{row.verdict}"
        table.add_row(escape(row.subject), verdict, *([on] if many else []), text)
    Console(highlight=False).print(table)
