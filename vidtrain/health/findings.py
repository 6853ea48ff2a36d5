"""What was found, by one process and by all: what is the same is said once."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

ORDER = {"ok": 0, "warn": 1, "fail": 2}


@dataclass(frozen=True)
class Member:
    """A process among those of a job.

    Attributes:
        rank: Its number among all, from 0.
        size: Number of processes.
        local_rank: Its number on its node, from 0.
        local_size: Number of processes on its node.
        node: Number of its node, from 0.
        host: Name of its node.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: int = 0
    host: str = ""

    @property
    def leads(self) -> bool:
        """Whether it examines what its node has once: disks, memory, network."""
        return self.local_rank == 0

    def __str__(self) -> str:
        """How a process is named to a person."""
        return f"rank {self.rank} ({self.host})"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: What was looked at.
        verdict: ok; warn: slower or riskier than need be; fail: would stop a training.
        found: What was found.
        remedy: What to do about it.
        alike: warn or fail: the verdict where it is not the same on all ranks.
        number: The measured value in `found`, by which processes are put in order.
        quiet: Say nothing while it is ok and the same on all.
        of_node: Whether it is said for all processes of the node.
    """

    subject: str
    verdict: str
    found: str
    remedy: str = ""
    alike: str = ""
    number: float | None = None
    quiet: bool = False
    of_node: bool = False


@dataclass(frozen=True)
class Line:
    """One line of the report.

    Attributes:
        subject: What was looked at.
        verdict: ok, warn or fail.
        found: What was found.
        remedy: What to do about it.
        ranks: The processes it was found by or says something of, in order.
        hosts: Their nodes.
    """

    subject: str
    verdict: str
    found: str
    remedy: str = ""
    ranks: tuple[int, ...] = ()
    hosts: tuple[str, ...] = ()


def merged(reports: Mapping[int, Sequence[Finding]], members: Mapping[int, Member]) -> list[Line]:
    """Returns the report on all processes.

    Args:
        reports: Each process's findings, by rank.
        members: All processes, by rank.
    """
    subjects: dict[str, list[tuple[int, Finding]]] = {}
    for rank in sorted(reports):
        for finding in reports[rank]:
            subjects.setdefault(finding.subject, []).append((rank, finding))
    return [
        line
        for found in subjects.values()
        for line in _of_subject(_with_absent(found, reports, members), members)
    ]


def line(finding: Finding, members: Sequence[Member] = ()) -> Line:
    """Returns a finding as a line about some processes."""
    ranks = tuple(sorted(member.rank for member in members))
    hosts = tuple(dict.fromkeys(member.host for member in members))
    return Line(finding.subject, finding.verdict, finding.found, finding.remedy, ranks, hosts)


def place(ranks: Sequence[int], members: Mapping[int, Member]) -> str:
    """Returns where something was found: all, hosts of which all ranks, or ranks with their hosts.

    Args:
        ranks: The processes, in order.
        members: All processes, by rank.
    """
    if len(ranks) == len(members):
        return "all"
    chosen, words = set(ranks), []
    for node in dict.fromkeys(members[rank].node for rank in ranks):
        whole = [rank for rank, member in members.items() if member.node == node]
        here = [rank for rank in whole if rank in chosen]
        label = members[here[0]].host
        few = "rank" if len(here) == 1 else "ranks"
        words.append(label if len(here) == len(whole) and len(whole) > 1
                     else f"{few} {spans(here)} ({label})")  # fmt: skip
    return ", ".join(words)


def spans(numbers: Sequence[int]) -> str:
    """Returns numbers as text, neighbours joined: 0-3, 7."""
    words: list[list[int]] = []
    for number in sorted(numbers):
        if words and number == words[-1][-1] + 1:
            words[-1].append(number)
        else:
            words.append([number])
    return ", ".join(str(w[0]) if len(w) == 1 else f"{w[0]}-{w[-1]}" for w in words)


def _of_subject(found: list[tuple[int, Finding]], members: Mapping[int, Member]) -> list[Line]:
    found = _differing(found)
    groups: dict[tuple[str, str], list[tuple[int, Finding]]] = {}
    for rank, finding in found:
        groups.setdefault((finding.verdict, finding.remedy), []).append((rank, finding))
    lines = []
    for (verdict, remedy), group in sorted(groups.items(), key=lambda item: ORDER[item[0][0]]):
        if verdict == "ok" and all(finding.quiet for _, finding in group):
            continue
        ranks = concerned(group, members)
        hosts = tuple(dict.fromkeys(members[rank].host for rank in ranks))
        text = _text(group, members)
        lines.append(Line(group[0][1].subject, verdict, text, remedy, ranks, hosts))
    return lines


def concerned(
    group: Sequence[tuple[int, Finding]], members: Mapping[int, Member]
) -> tuple[int, ...]:
    """Returns the ranks that findings are about: the finders, or all of their nodes."""
    nodes = {members[rank].node for rank, finding in group if finding.of_node}
    found = {rank for rank, _ in group}
    found |= {rank for rank, member in members.items() if member.node in nodes}
    return tuple(sorted(found))


def _with_absent(
    found: list[tuple[int, Finding]], ranks: Iterable[int], members: Mapping[int, Member]
) -> list[tuple[int, Finding]]:
    """Adds the processes that do not have a variable or a package which others have."""
    like = found[0][1]
    if not like.alike or like.subject.split()[0] not in ("variable", "package"):
        return found
    lacking = set(ranks) - {rank for rank, _ in found}
    if like.quiet:  # said by one process of each node
        lacking = {rank for rank in lacking if members[rank].leads}
    absent = dataclasses.replace(like, verdict="ok", found="nothing", quiet=True)
    return sorted([*found, *((rank, absent) for rank in lacking)], key=lambda item: item[0])


def _differing(found: list[tuple[int, Finding]]) -> list[tuple[int, Finding]]:
    """Gives those that differ from most, in what must be alike, their verdict."""
    counts = Counter(finding.found for _, finding in found if finding.alike)
    if len(counts) < 2:
        return found
    usual = counts.most_common(1)[0][0]  # of equally many the lowest rank's
    return [
        (rank, finding) if not finding.alike or finding.found == usual
        else (rank, dataclasses.replace(
            finding, verdict=max(finding.verdict, finding.alike, key=ORDER.__getitem__),
            remedy=finding.remedy or "make it the same on all",
            found=f"{finding.found}, where rank {_first(found, usual)} has {usual}",
        ))
        for rank, finding in found
    ]  # fmt: skip


def _first(found: list[tuple[int, Finding]], text: str) -> int:
    return next(rank for rank, finding in found if finding.found == text)


def _text(group: list[tuple[int, Finding]], members: Mapping[int, Member]) -> str:
    """Returns one text for what several processes found."""
    texts = dict.fromkeys(finding.found for _, finding in group)
    if len(texts) == 1:
        return group[0][1].found
    if all(finding.number is not None for _, finding in group):
        ordered = sorted(group, key=lambda item: item[1].number or 0.0)
        least, most = ordered[0][1], ordered[-1][1]
        ends = [place(concerned([item], members), members) for item in (ordered[0], ordered[-1])]
        return f"{least.found} on {ends[0]}, up to {most.found} on {ends[1]}"
    words = []
    for text in texts:
        ranks = concerned([item for item in group if item[1].found == text], members)
        words.append(f"{place(ranks, members)}: {text}")
    shown = 2 if group[0][1].verdict == "ok" else 4
    more = f"; and {len(words) - shown} others" if len(words) > shown else ""
    return "; ".join(words[:shown]) + more
