"""Check machines and what is between them: what would stop or slow a training, and what to do."""

import dataclasses
import os
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import vidtrain
from vidtrain import distributed
from vidtrain.config.doctor import DoctorConfig
from vidtrain.distributed import World
from vidtrain.errors import InputError, UsageError
from vidtrain.health import disks, links, machine, meeting, network, peers, software
from vidtrain.health.decoders import decoders
from vidtrain.health.findings import Finding, Line, line
from vidtrain.health.meeting import Room
from vidtrain.health.reporting import Report, show
from vidtrain.records import provenance
from vidtrain.running import batch_finder, strict
from vidtrain.running import dry_run as trying

# Settings that by themselves do not make it the examination of a training.
OWN = {"runs", "name", "data", "device", "num_threads", "json", "dry_step", "limit_seconds",
       "sizes_mb", "min_gbps"}  # fmt: skip
# Where these fail, no process group can be formed.
GROUND = {"answer", "device", "host name", "interface", "connections"}
GIB = 2**30


def doctor(config: DoctorConfig) -> None:
    """Examines this process and, with torchrun, all of them; rank 0 prints what was found.

    Raises:
        UsageError: A setting is wrong.
        InputError: Something was found that would stop a training; the message names it.
        SystemExit: The same, on other ranks than 0, which say nothing.
    """
    check(config)
    me = meeting.member(os.environ)
    with meeting.room(me, config.limit_seconds) as room:
        report = Report(room.members)
        room.gave_up = partial(stuck, config, room, report)
        with progress(room):
            own = [dataclasses.asdict(finding) for finding in examine(config, room)]
            collect(room, report, "own", own)
            if agreed(room, report, "own"):
                between_nodes(config, room, report)
            if agreed(room, report, "nodes"):
                in_a_group(config, room, report)
        room.say("failed", report.failed())
        failed = report.failed() if me.rank == 0 else room.await_rank_0("failed")
        if me.rank == 0:
            show(report, as_json=config.json)
    if failed and me.rank:
        sys.exit(1)
    if failed:
        few = "1 check" if len(failed) == 1 else f"{len(failed)} checks"
        raise InputError(f"{few} failed: {', '.join(failed)}; see the table")


@contextmanager
def progress(room: Room) -> Iterator[None]:
    """Shows on a terminal what rank 0 is at."""
    if room.me.rank:
        yield
        return
    with Console(stderr=True).status("start") as status:
        room.told = lambda name: status.update(f"{name} …")
        yield


def check(config: DoctorConfig) -> None:
    """Refuses settings that make no sense.

    Raises:
        UsageError: The message names it.
    """
    if config.limit_seconds <= 0:
        raise UsageError(f"limit_seconds={config.limit_seconds:g} must be above 0")
    if not config.sizes_mb or min(config.sizes_mb) <= 0:
        raise UsageError(f"sizes_mb={config.sizes_mb} must be sizes above 0, such as [1,16]")
    if config.min_gbps is not None and config.min_gbps <= 0:
        raise UsageError(f"min_gbps={config.min_gbps:g} must be above 0; null asks for none")


def examine(config: DoctorConfig, room: Room) -> Iterator[Finding]:
    """What a process looks at alone; on a node, its first process looks at what all share."""
    me, data = room.me, config.data
    num_nodes = len({member.node for member in room.members.values()})
    room.begin("versions")
    code = provenance.source_hash(Path(vidtrain.__file__).parent)
    yield from software.versions(provenance.PACKAGES, provenance.packages(), code=code, me=me)
    yield from software.variables(os.environ, me=me, num_nodes=num_nodes)
    room.begin("device")
    yield from machine.device(config.device, me)
    yield from machine.open_files()
    room.begin("decoders")
    yield from decoders(data.decoder)
    if data.name != "synthetic" and (root := Path(data.root).expanduser()).is_dir():
        room.begin(f"listing of {root}")
        yield from disks.listing(root)
    for finding in of_node(config, room) if me.leads else ():
        yield dataclasses.replace(finding, of_node=True)


def of_node(config: DoctorConfig, room: Room) -> Iterator[Finding]:
    """What all processes of a node share."""
    me, data, runs = room.me, config.data, Path(config.runs)
    num_nodes = len({member.node for member in room.members.values()})
    room.begin("driver and memory")
    yield from machine.all_gpus()
    yield from machine.memory(me)
    yield from software.threads(me=me, num_workers=data.num_workers)
    if data.name != "synthetic":
        root = Path(data.root).expanduser()
        room.begin(f"data folder {root}")
        yield from disks.reading(root)
    room.begin(f"run folder {runs}")
    yield from disks.writing(runs)
    room.begin("network")
    yield from network.naming(os.environ, me=me, num_nodes=num_nodes)
    yield from network.connections()
    if me.size == 1:
        yield from network.ports()


def collect(room: Room, report: Report, topic: str, value: Any, *, findings: bool = True) -> Any:
    """Brings what all processes say to rank 0, which notes who does not answer.

    Returns:
        On rank 0 what was said, by rank; elsewhere {}.
    """
    answers = room.gather(topic, value)
    if room.me.rank:
        return {}
    if findings:
        report.add(answers)
    missing = set(range(room.me.size)) - answers.keys()
    late = room.excuses(missing) if missing else {}
    report.lines += [silent(room, rank, what) for rank, what in late.items()]
    return answers


def silent(room: Room, rank: int, what: str) -> Line:
    """Returns the line on a process that keeps the others waiting."""
    remedy = "look at its node: is it up, is a file system hanging, is its process stopped?"
    there = [room.members[rank]] if rank in room.members else []
    return line(Finding("answer", "fail", f"{room.named(rank)} {what}", remedy), there)


def agreed(room: Room, report: Report, after: str) -> bool:
    """Returns, on all the same, whether a process group can be formed by what is known so far."""
    if room.me.rank == 0:
        room.say(f"go after {after}", not GROUND & set(report.failed()))
        return not GROUND & set(report.failed())
    return bool(room.await_rank_0(f"go after {after}"))


def stuck(config: DoctorConfig, room: Room, report: Report, waited_for: dict[int, str]) -> None:
    """Prints what is known, on rank 0, when one process keeps all waiting."""
    if room.me.rank:
        return
    report.lines += [silent(room, rank, what) for rank, what in waited_for.items()]
    if not waited_for:
        remedy = "a firewall or a broken link; NCCL_DEBUG=INFO says more"
        report.lines.append(Line("answer", "fail", f"{room.at}: {meeting.NOBODY}", remedy))
    disks.remove_token(Path(config.runs), report.token)
    show(report, as_json=config.json)


def between_nodes(config: DoctorConfig, room: Room, report: Report) -> None:
    """Whether all see what rank 0 writes, whether nodes reach each other, whose clock is off."""
    me, runs = room.me, Path(config.runs)
    if me.size == 1:
        return
    token = report.token = disks.put_token(runs) if me.rank == 0 else None
    try:
        if me.rank == 0:
            room.say("token", [token, secrets.token_hex(16)])
        token, question = room.heard("token", 0) if me.rank == 0 else room.await_rank_0("token")
        room.begin("shared run folder")
        seen = [dataclasses.asdict(f) for f in disks.seen(runs, token and tuple(token), me)]
        collect(room, report, "seen", seen)
    finally:
        if me.rank == 0:
            disks.remove_token(runs, token)
    leaders = [member for member in room.members.values() if member.leads]
    if len(leaders) < 2:
        return
    with peers.answering(question) as port:
        address = network.own_address(os.environ) or "127.0.0.1"
        hosts = collect(room, report, "address", [address, port], findings=False)
        room.say("hosts", {m.rank: hosts[m.rank] for m in leaders if m.rank in hosts})
        told = room.heard("hosts", 0) if me.rank == 0 else room.await_rank_0("hosts")
        room.begin("connections")
        there = {int(rank): (str(host), int(port)) for rank, (host, port) in told.items()}
        visits = peers.visits(there, question, me) if me.leads else []
        rows = [dataclasses.asdict(visit) for visit in visits]
        answers = collect(room, report, "visits", rows, findings=False)
        room.say("visited", True)
        if me.rank:
            room.await_rank_0("visited")
    found = {r: [peers.Visit(**v) for v in answers[r]] for r in there if r in answers}
    if me.rank == 0:
        report.lines += peers.reached(found, room.members)
        report.measured["visits"] = answers


def in_a_group(config: DoctorConfig, room: Room, report: Report) -> None:
    """What is measured with all at work at once: exchange, sums, products, a training step."""
    own: dict[str, Any] = {"findings": [], "exchanges": [], "sums": []}
    limit = config.limit_seconds
    try:
        room.begin("process group")
        with distributed.session(
            config.device, num_threads=config.num_threads, timeout_seconds=10 * limit
        ) as world:
            if world.size > 1:
                distributed.any_true(False, world)
                room.begin("exchange of pairs")
                own["exchanges"] = links.exchanges(world, room.members)
                room.begin("all-reduce")
                own["sums"] = links.sums(world, config.sizes_mb)
            room.begin("matrix products")
            own["products"] = links.products(world.device)
            distributed.any_true(False, world)
            if wants_step(config):
                room.begin("dry step", 10 * limit)
                own["findings"] = [dataclasses.asdict(f) for f in dry_step(config, world, room)]
    except (RuntimeError, InputError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = "NCCL_DEBUG=INFO or TORCH_DISTRIBUTED_DEBUG=DETAIL says more"
        finding = Finding("process group", "fail", f"at {room.at}: {said}", remedy)
        own["findings"] = [dataclasses.asdict(finding)]
    answers = collect(room, report, "group", own, findings=False)
    if room.me.rank == 0:
        compared(config, answers, report)


def compared(config: DoctorConfig, answers: dict[int, Any], report: Report) -> None:
    """Notes what follows from the measurements of all."""
    members, cuda = report.members, torch.cuda.is_available() and config.device != "cpu"
    report.add({rank: answer["findings"] for rank, answer in answers.items()})
    exchanges = {rank: answer["exchanges"] for rank, answer in answers.items()}
    products = {rank: a["products"] for rank, a in answers.items() if "products" in a}
    report.measured |= {"exchange": exchanges, "all_reduce": answers[0]["sums"],
                        "products_tflops": products}  # fmt: skip
    report.lines += links.exchanged(exchanges, members, min_gbps=config.min_gbps)
    if answers[0]["sums"]:
        report.lines += links.summed(answers[0]["sums"], ranks=len(members), cuda=cuda)
    if products:
        report.lines += links.computed(products, members, cuda=cuda)


def wants_step(config: DoctorConfig) -> bool:
    """Returns whether a training step is asked for."""
    if config.dry_step is not None:
        return config.dry_step
    return any(re.split(r"[.=@]", word.lstrip("+~"))[0] not in OWN for word in config.given)


def dry_step(config: DoctorConfig, world: World, room: Room) -> Iterator[Finding]:
    """Takes a training step and an evaluation step on generated clips."""
    try:
        with strict.mode(config):
            tried = trying.built(batch_finder.settled(config, world), world)
            seconds = list(trying.steps(tried.parts, tried.config, world).values())[-1]
            trying.evaluation(tried.parts, tried.config, world)
    except torch.OutOfMemoryError:
        room.begin("out of memory in the dry step")
        yield Finding("dry step", "fail", "out of GPU memory",
                      "train.accumulate=auto, model.checkpointing or parallel=fsdp")  # fmt: skip
        return
    except InputError as error:
        yield Finding("dry step", "fail", str(error))
        return
    peak, clips = tried.peak(world), tried.parts.plan.batch_size
    where = "allocated on the GPU" if world.device.type == "cuda" else "of growth"
    text = f"{config.model.name}, {clips} clips in {seconds:.3g} s ({clips / seconds:.3g} clips/s)"
    yield Finding("dry step", "ok", text, number=seconds)
    yield Finding("dry step memory", "ok", f"{peak / GIB:.2f} GiB {where}", number=peak)
