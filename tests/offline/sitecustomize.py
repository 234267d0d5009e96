"""Writes down, and refuses, whatever would leave this machine.

Python imports a module of this name when it starts, so it watches the children of a process too. It sees what Python's
own sockets do, not those of compiled code.
"""

import errno
import ipaddress
import os
import socket
import sys
from typing import Any

# Where the address stands among what an event tells.
PLACE = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1}
PLACE |= {"socket.getaddrinfo": 0, "socket.gethostbyname": 0, "socket.gethostbyaddr": 0}


def stays(host: object) -> bool:
    """Whether a host is this machine. Any name but localhost has to be looked up somewhere."""
    text = host.decode() if isinstance(host, bytes) else str(host or "localhost")
    try:
        return text == "localhost" or ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False


def watch(event: str, told: tuple[Any, ...]) -> None:
    if event not in PLACE or (PLACE[event] and told[0].family not in (socket.AF_INET, socket.AF_INET6)):
        return
    address = told[PLACE[event]]
    host = address[0] if isinstance(address, tuple) else address
    if not stays(host):
        with open(os.environ["NOTICED"], "a") as file:  # noqa: PTH123  (the less is imported in every child, the better)
            file.write(f"{event} {host}\n")
        raise OSError(errno.ENETUNREACH, "the network is cut off")


sys.addaudithook(watch)
