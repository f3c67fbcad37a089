"""The private network of a group: one bridge, one address a task, and the names.

Decided here and only here: the address plan, the interface names, and the contents of ``/etc/hosts``. The kernel is
spoken to directly (rtnetlink), so no ``ip`` command is needed. Everything is created in the network namespace of the
group's supervisor, and so vanishes with it, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
from collections.abc import Sequence
from typing import Self

from casstore_orchestrator.executors.syscalls import CLONE_NEWNET, setns, unshare

__all__ = [
    "MAX_TASKS",
    "NETWORK",
    "RESOLVER",
    "UPLINK",
    "GroupNetwork",
    "address_of",
    "find_router",
    "host_names",
    "hosts_file",
    "why_no_router",
]

MAX_TASKS = 4000
NETWORK = "10.213.0.0/16"
GATEWAY, RESOLVER = "10.213.0.2", "10.213.0.3"
"""Addresses of the way out, if there is one; those that slirp4netns takes in its network."""
UPLINK = "osmo-out"
"""The name of the interface of the way out."""
_BRIDGE = "osmo0"
_PREFIX_LENGTH = 16

_NEWLINK, _DELLINK, _NEWADDR, _NEWROUTE = 16, 17, 20, 24
_REQUEST, _ACK, _EXCL, _CREATE = 1, 4, 0x200, 0x400
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 10, 18, 28
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_GATEWAY = 5
_TABLE_MAIN, _PROTOCOL_STATIC, _UNICAST = 254, 4, 1
_FIRST_SLOT = 256
_IFF_UP = 1


def address_of(slot: int) -> str:
    """The address of the group's task number ``slot`` (from 0)."""
    number = slot + _FIRST_SLOT
    return f"10.213.{number >> 8}.{number & 255}"


def host_names(name: str) -> tuple[str, ...]:
    """The names under which a task is found: its own, and the forms that hostname rules and programs make of it."""
    lower = name.lower()
    return tuple(dict.fromkeys((name, lower, lower.replace("_", "-"))))


def hosts_file(names: Sequence[str], addresses: Sequence[str]) -> bytes:
    """``/etc/hosts`` for a group. An exact name always wins over the variant of another task's name."""
    taken = set(names)
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    for name, address in zip(names, addresses, strict=True):
        mine = [name]
        for variant in host_names(name)[1:]:
            if variant not in taken:
                taken.add(variant)
                mine.append(variant)
        lines.append(f"{address} {' '.join(mine)}")
    return ("\n".join(lines) + "\n").encode()


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def _link(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, change)


def _name(value: str) -> bytes:
    return _attribute(_IFLA_IFNAME, value.encode() + b"\0")


class _Netlink:
    """rtnetlink in the network namespace in which it was made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, kind: int, flags: int, body: bytes, what: str) -> None:
        self._sequence += 1
        header = struct.pack("=IHHII", len(body) + 16, kind, flags | _REQUEST | _ACK, self._sequence, 0)
        self._socket.send(header + body)
        reply = self._socket.recv(65536)
        (error,) = struct.unpack_from("=i", reply, 16)
        if error:
            raise OSError(-error, f"{what}: {os.strerror(-error)}")

    def bring_up(self, interface: str) -> None:
        body = _link(socket.if_nametoindex(interface), _IFF_UP, _IFF_UP)
        self.ask(_NEWLINK, 0, body, f"bring {interface} up")

    def add_bridge(self, name: str) -> None:
        info = _attribute(_IFLA_LINKINFO, _attribute(_INFO_KIND, b"bridge"))
        self.ask(_NEWLINK, _CREATE | _EXCL, _link() + _name(name) + info, "create a bridge")

    def add_pair(self, name: str, master: str, peer: str, peer_mac: bytes, namespace: int) -> None:
        """A veth pair: one end here on the bridge, the other in ``namespace``."""
        other = _link() + _name(peer) + _attribute(_IFLA_ADDRESS, peer_mac)
        other += _attribute(_IFLA_NET_NS_FD, struct.pack("=I", namespace))
        data = _attribute(_INFO_DATA, _attribute(_VETH_PEER, other))
        info = _attribute(_IFLA_LINKINFO, _attribute(_INFO_KIND, b"veth") + data)
        bridge = _attribute(_IFLA_MASTER, struct.pack("=I", socket.if_nametoindex(master)))
        self.ask(_NEWLINK, _CREATE | _EXCL, _link() + _name(name) + bridge + info, "create a veth pair")

    def enslave(self, name: str, master: str) -> None:
        body = _link(socket.if_nametoindex(name))
        body += _attribute(_IFLA_MASTER, struct.pack("=I", socket.if_nametoindex(master)))
        self.ask(_NEWLINK, 0, body, f"put {name} on the bridge")

    def add_default_route(self, gateway: str) -> None:
        body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, _TABLE_MAIN, _PROTOCOL_STATIC, 0, _UNICAST, 0)
        body += _attribute(_RTA_GATEWAY, socket.inet_aton(gateway))
        self.ask(_NEWROUTE, _CREATE | _EXCL, body, f"add a route by {gateway}")

    def delete(self, name: str) -> None:
        self.ask(_DELLINK, 0, _link() + _name(name), f"delete {name}")

    def add_address(self, interface: str, address: str) -> None:
        raw = socket.inet_aton(address)
        index = socket.if_nametoindex(interface)
        body = struct.pack("=BBBBI", socket.AF_INET, _PREFIX_LENGTH, 0, 0, index)
        body += _attribute(_IFA_LOCAL, raw) + _attribute(_IFA_ADDRESS, raw)
        self.ask(_NEWADDR, _CREATE | _EXCL, body, f"give {interface} the address {address}")


class GroupNetwork:
    """The network of one group; lives in the namespace of the (single-threaded) process that makes it."""

    def __init__(self, *, bridged: bool) -> None:
        """Take a network namespace of our own, unless the caller did; ``bridged``: one address a task."""
        self.bridged = bridged
        self._way_out = False
        self._own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        with _Netlink() as netlink:
            netlink.bring_up("lo")
            if bridged:
                netlink.add_bridge(_BRIDGE)
                netlink.bring_up(_BRIDGE)

    def open_way_out(self) -> None:
        """Take the interface of the way out, which is there, onto the bridge; tasks that join later get a route."""
        with _Netlink() as netlink:
            netlink.bring_up(UPLINK)
            netlink.enslave(UPLINK, _BRIDGE)
        self._way_out = True

    def join(self, slot: int, number: int) -> int | None:
        """A new network namespace for a task, connected and addressed; returns its descriptor.

        ``number`` is unique per attempt, ``slot`` is the task's: a new attempt keeps address and hardware address,
        so peers notice nothing. None: no bridge, the task shares the group's one namespace.
        """
        if not self.bridged:
            return None
        address = address_of(slot)
        mac = b"\x02\x00" + socket.inet_aton(address)
        unshare(CLONE_NEWNET)
        fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with _Netlink() as inside:
                inside.bring_up("lo")
                setns(self._own, CLONE_NEWNET)
                with _Netlink() as outside:
                    outside.add_pair(f"t{number}", _BRIDGE, "eth0", mac, fd)
                    outside.bring_up(f"t{number}")
                setns(fd, CLONE_NEWNET)
                inside.add_address("eth0", address)
                inside.bring_up("eth0")
                if self._way_out:
                    inside.add_default_route(GATEWAY)
        except OSError:
            os.close(fd)
            raise
        finally:
            setns(self._own, CLONE_NEWNET)
        return fd

    def open(self, namespace: int | None, family: int, kind: int) -> socket.socket:
        """A socket in the network namespace of a task (None: the group's), where it stays whoever uses it."""
        if namespace is not None:
            setns(namespace, CLONE_NEWNET)
        try:
            return socket.socket(family, kind)
        finally:
            if namespace is not None:
                setns(self._own, CLONE_NEWNET)

    def leave(self, number: int) -> None:
        """Take an ended attempt off the bridge at once, instead of when the kernel gets round to it."""
        if self.bridged:
            with contextlib.suppress(OSError), _Netlink() as netlink:
                netlink.delete(f"t{number}")


def find_router(path: str | None = None) -> str:
    """The program, or an empty text."""
    return shutil.which("slirp4netns", path=path) or ""


def why_no_router(path: str | None = None) -> str:
    """Why groups get no way out on this machine; empty when they do."""
    if not find_router(path):
        return "the package 'slirp4netns' is not installed"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/net/tun can't be used: {error.strerror}"
    return ""
