"""Rounds of measurement: every stream on the same samples, in a new random order each round."""

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from vidtrain.benchmarking.patterns import EVAL_CLIPS, Group, Pattern, Sample, draw_samples
from vidtrain.benchmarking.processes import Host
from vidtrain.errors import InputError

BATCH = 4


@dataclass(frozen=True)
class Stream:
    """One thing to measure.

    Attributes:
        program: vidtrain, pytorchvideo or mmaction2.
        name: Which part of its input path; see `own_streams.batches`.
        group: The files.
    """

    program: str
    name: str
    group: str

    @property
    def key(self) -> str:
        """Its name in results."""
        return f"{self.group}/{self.program}/{self.name}"


@dataclass
class Measured:
    """What a stream took, per sample (a clip, or a video with all its views), by round.

    Attributes:
        cpu: CPU seconds of the program and its loader processes.
        shape: Of a clip as it is delivered.
        dtype: Of its values.
        bytes: Delivered, per sample.
        decoded: Frames decoded per frame wanted, where that is known.
    """

    cpu: list[float] = field(default_factory=list)
    shape: list[int] = field(default_factory=list)
    dtype: str = ""
    bytes: float = 0.0
    decoded: float | None = None


@dataclass
class Section:
    """Streams that are compared with one another, on one pattern.

    Attributes:
        pattern: The way of sampling.
        groups: The files, by name of the group.
        samples: What is sampled from them.
        streams: What is measured.
        measured: The results, by stream.
        versions: Packages that the programs ran with.
    """

    pattern: Pattern
    groups: dict[str, Group]
    samples: dict[str, list[Sample]]
    streams: list[Stream]
    measured: dict[Stream, Measured] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)


def plan_sections(
    groups: list[Group], patterns: list[Pattern], peers: list[str], *, clips: int, seed: int,
    gpu: bool,
) -> list[Section]:  # fmt: skip
    """Decides what is compared: a group with its prepared copies, every other with the peers."""
    names = {group.name: group for group in groups}
    copies = {group.prepared for group in groups}
    sections = []
    for group in groups:
        for pattern in patterns:
            # A video with all its views is the work of many clips.
            count = max(1, clips // 8) if pattern.evaluation else clips // BATCH * BATCH
            members = [group]
            if group.prepared in names:
                members.append(names[group.prepared])
            elif group.name in copies:
                continue
            if len(members) == 2 and pattern.evaluation:
                continue
            own = ["open", "demux", "decode", "dataset", "loader"]
            if len(members) == 1:
                own += ["on_cpu", "on_gpu"] if gpu else ["on_cpu"]
            streams = [Stream("vidtrain", name, g.name) for g in members for name in own]
            if len(members) == 1:
                streams += [Stream(peer, "loader", group.name) for peer in peers
                            if runs(peer, pattern)]  # fmt: skip
            samples = {g.name: draw_samples(g, pattern, count=count, seed=seed) for g in members}
            sections.append(Section(pattern, {g.name: g for g in members}, samples, streams))
    return sections


def runs(peer: str, pattern: Pattern) -> bool:
    """Whether a program has published a recipe for a pattern."""
    return not (peer == "pytorchvideo" and pattern.name == "tsn8")


def measure(
    section: Section, hosts: Mapping[str, Host], *, rounds: int, seed: int,
    advance: Callable[[str], None],
) -> None:  # fmt: skip
    """Measures a section; the first round warms caches and loaders up and is forgotten.

    Args:
        section: What to measure; its results are put into it.
        hosts: A process for each program.
        rounds: Rounds that count.
        seed: Of the order and the crops.
        advance: Called before each measurement with its name.

    Raises:
        InputError: A program failed, or did not deliver the samples that it was given.
    """
    order = random.Random(seed)
    batch = 1 if section.pattern.evaluation else BATCH
    for stream in section.streams:
        samples = section.samples[stream.group]
        reply = hosts[stream.program].order(
            open=stream.key, program=stream.program, stream=stream.name,
            pattern=section.pattern.name, clips=_clips(stream, samples), batch=batch, seed=seed,
        )  # fmt: skip
        section.versions[stream.program] = reply["versions"]
        section.measured[stream] = Measured()
    count = len(next(iter(section.samples.values())))
    for number in range(rounds + 1):
        cpu = dict.fromkeys(section.streams, 0.0)
        came: dict[Stream, list[dict[str, Any]]] = {stream: [] for stream in section.streams}
        # A batch each in turn: what else the machine does then falls on all alike.
        for _ in range(count // batch):
            for stream in order.sample(section.streams, len(section.streams)):
                advance(f"{section.pattern.name} {stream.key}")
                spent, batches = hosts[stream.program].run(stream.key, _per_turn(section, stream))
                cpu[stream] += spent
                came[stream] += batches
        for stream, found in section.measured.items():
            _check(stream, came[stream], count)
            if number:
                _note(found, cpu[stream], came[stream], count)
    for stream in section.streams:
        hosts[stream.program].order(close=stream.key)


def turns(section: Section, *, rounds: int) -> int:
    """Number of times that `measure` calls `advance`."""
    count = len(next(iter(section.samples.values())))
    batch = 1 if section.pattern.evaluation else BATCH
    return (rounds + 1) * count // batch * len(section.streams)


def _per_turn(section: Section, stream: Stream) -> int:
    """Batches that hold what the others deliver in one: PyTorchVideo's are one clip's crops."""
    one_clip = stream.program == "pytorchvideo" and section.pattern.evaluation
    return EVAL_CLIPS if one_clip else 1


def _clips(stream: Stream, samples: list[Sample]) -> list[dict[str, Any]]:
    fields = [asdict(sample) for sample in samples]
    if stream.program == "mmaction2":
        return [{"path": f["path"], "start": f["start"]} for f in fields]
    return fields


def _check(stream: Stream, came: list[dict[str, Any]], count: int) -> None:
    """Programs may replace what they cannot read without a word: that would be fast, and wrong."""
    samples = {sample for batch in came for sample in batch["samples"]}
    if samples != set(range(count)):
        raise InputError(
            f"{stream.program} delivered {len(samples)} of {count} samples of {stream.group}; "
            "`vidtrain check` tells whether files are damaged."
        )


def _note(measured: Measured, cpu: float, came: list[dict[str, Any]], count: int) -> None:
    measured.cpu.append(cpu / count)
    measured.shape = came[0].get("shape", [])
    measured.dtype = came[0].get("dtype", "")
    measured.bytes = sum(batch["bytes"] for batch in came) / count
    if wanted := sum(batch.get("wanted", 0) for batch in came):
        measured.decoded = sum(batch["decoded"] for batch in came) / wanted


@dataclass(frozen=True)
class Ratio:
    """How many times less CPU time a stream takes than another, by round.

    Attributes:
        values: One for each round.
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle round."""
        return median(self.values)

    @property
    def inconclusive(self) -> bool:
        """Whether rounds disagree on which of the two is faster."""
        return min(self.values) <= 1 <= max(self.values)

    def __str__(self) -> str:
        return f"{self.median:.2f} [{min(self.values):.2f}-{max(self.values):.2f}]"


def ratio(slower: Measured, faster: Measured) -> Ratio:
    """Returns CPU time of one over that of the other, round by round."""
    return Ratio(tuple(a / max(b, 1e-9) for a, b in zip(slower.cpu, faster.cpu, strict=True)))
