"""The network interface for gloo and NCCL: the one by which Ray reaches this node.

By default gloo uses the address of the host's name, which Debian and Ubuntu resolve to 127.0.1.1,
and NCCL the first interface that it finds. Then the workers of two nodes cannot connect.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

ADDRESS_OF = 0x8915  # SIOCGIFADDR, from Linux's sockios.h


def choose_interface() -> None:
    """Sets the interface in the environment of this process, unless the user has set one."""
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # "=": this name, not a prefix


def interface_of(address: str) -> str | None:
    """The interface with this IPv4 address; None if there is none."""
    try:
        import fcntl  # not on Windows
    except ImportError:
        return None
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), ADDRESS_OF, request)
            except OSError:  # this interface has no IPv4 address
                continue
        if socket.inet_ntoa(answer[20:24]) == address:
            return name
    return None


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


class NetworkConfig(TorchConfig):
    """Ray Train's TorchConfig; its workers first choose their interface."""

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend
