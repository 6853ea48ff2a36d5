"""The network as one node sees it: its name, its interfaces, its ports."""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vidtrain.health.findings import Finding, Member

SIOCGIFADDR = 0x8915  # linux/sockios.h
TORCHRUN_PORT = 29500
NAME_REMEDY = (
    'put it into DNS or the hosts file (echo "ADDRESS $(hostname)" >> /etc/hosts), or set '
    "GLOO_SOCKET_IFNAME=eth0 and start torchrun with --local-addr=ADDRESS and, on the first node, "
    "--rdzv-conf=is_host=1"
)


@dataclass(frozen=True)
class Interface:
    """A network interface that has an address.

    Attributes:
        name: Its name.
        address: Its IPv4 address.
        speed: Mbit/s; None: not told.
        mtu: Largest packet, bytes; 0: not told.
    """

    name: str
    address: str
    speed: int | None
    mtu: int


def interfaces() -> list[Interface]:
    """Returns the interfaces of this machine that have an IPv4 address (Linux)."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
            except OSError:  # it has none
                continue
            address = socket.inet_ntoa(answer[20:24])
            speed = _number(name, "speed")
            found.append(Interface(name, address, speed if speed > 0 else None,
                                   _number(name, "mtu")))  # fmt: skip
    return found


def _number(name: str, field: str) -> int:
    try:
        return int(Path(f"/sys/class/net/{name}/{field}").read_text("ascii"))
    except (OSError, ValueError):
        return 0


def resolved(host: str) -> list[str]:
    """Returns the addresses of a host name; none: it cannot be resolved."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return []
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def own_address(environment: Mapping[str, str]) -> str | None:
    """Returns the address at which gloo lets others connect to this process.

    It is that of GLOO_SOCKET_IFNAME, else the one that the own host name stands for; None: neither.
    """
    wanted = environment.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    if wanted:
        return next((i.address for i in interfaces() if i.name == wanted), None)
    return next(iter(resolved(socket.gethostname())), None)


def is_loopback(address: str) -> bool:
    """Returns whether an address is one that only this machine reaches."""
    return address.startswith("127.") or address == "::1"


def naming(environment: Mapping[str, str], *, me: Member, num_nodes: int) -> Iterator[Finding]:
    """The own host name, the first node's, and the interfaces that variables name."""
    host = socket.gethostname()
    addresses = resolved(host)
    chosen = environment.get("GLOO_SOCKET_IFNAME", "")
    if not addresses:
        # One process alone needs no name; torchrun's processes wait for it for ever.
        stops = me.size > 1 and not chosen
        yield Finding("host name", "fail" if stops else "warn", f"{host} cannot be resolved",
                      NAME_REMEDY)  # fmt: skip
    elif num_nodes > 1 and not chosen and is_loopback(addresses[0]):
        yield Finding(
            "host name", "fail", f"{host} is {addresses[0]} to itself, which no other node reaches",
            "set GLOO_SOCKET_IFNAME to the interface of the network between the nodes, or take the "
            "name out of the line of 127.* in the hosts file",
        )  # fmt: skip
    else:
        yield Finding("host name", "ok", f"{host} is {', '.join(addresses[:3])}")
    there = {interface.name for interface in interfaces()}
    for name in filter(None, chosen.split(",")):
        if name not in there:
            yield Finding("interface", "fail", f"GLOO_SOCKET_IFNAME={chosen}: there is no {name}",
                          f"name one of {', '.join(sorted(there))}")  # fmt: skip
    wanted = environment.get("NCCL_SOCKET_IFNAME", "")
    if wanted and not wanted.startswith("^"):
        exact, names = wanted.startswith("="), wanted.lstrip("=").split(",")
        if not any(
            name == n or (not exact and n.startswith(name)) for name in names for n in there
        ):
            yield Finding("interface", "fail", f"NCCL_SOCKET_IFNAME={wanted} fits no interface",
                          f"name one of {', '.join(sorted(there))}")  # fmt: skip
    master = environment.get("MASTER_ADDR")
    if master and not resolved(master):
        yield Finding("MASTER_ADDR", "fail", f"{master} cannot be resolved", NAME_REMEDY)


def connections() -> Iterator[Finding]:
    """Interfaces with their speed, the one that processes talk through first; InfiniBand ports."""
    found = interfaces()
    address = own_address(os.environ)
    used = next((i for i in found if i.address == address), None)
    if used is not None and used.name != "lo":
        text = f"{used.speed / 1000:g} Gbit/s, " if used.speed else ""
        yield Finding("link", "ok", f"{text}mtu {used.mtu}", alike="warn")
    words = [
        f"{i.name} {i.address}" + (f" {i.speed / 1000:g} Gbit/s" if i.speed else "")
        + (f" mtu {i.mtu}" if i.mtu else "")
        for i in found
    ]  # fmt: skip
    text = "; ".join(words) or "no interface is up"
    remedy = "" if words else "ip link set lo up: processes talk through it at least"
    yield Finding("network", "ok" if words else "fail", text, remedy)
    for state in sorted(Path("/sys/class/infiniband").glob("*/ports/*/state")):
        text = state.read_text("ascii").strip()
        rate = (state.parent / "rate").read_text("ascii").strip()
        active = text.endswith("ACTIVE")
        yield Finding(
            f"infiniband {state.parts[-4]}", "ok" if active else "warn", f"{text}, {rate}",
            "" if active else "cable or subnet manager: ibstat says more",
        )  # fmt: skip


def ports(port: int = TORCHRUN_PORT) -> Iterator[Finding]:
    """The port that torchrun's first node listens at unless told otherwise."""
    try:
        with socket.create_server(("", port)):
            yield Finding("port", "ok", f"{port} is free for torchrun")
    except OSError as error:
        used = error.errno == errno.EADDRINUSE
        yield Finding(
            "port", "warn", f"{port} is {'in use' if used else f'refused: {error.strerror}'}",
            f"start torchrun with --standalone, or with --master-port={port + 100}",
        )  # fmt: skip
