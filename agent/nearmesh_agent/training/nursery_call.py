"""Has the nursery begin a program: `python -I -S nursery_call.py ARGUMENT ...`; fails where there is none.

A script of its own that imports next to nothing, since it runs for each message.
"""

from __future__ import annotations

import json
import socket
import sys

# In the folder that all of Flower's processes of a node run in, so that its path is short enough for a socket's name.
SOCKET = "nursery.sock"
GO = b"+"
# Of a line of arguments, in bytes.
LONGEST = 65536
# Flower gives up a program that is silent for 30 s.
WAIT_S = 12.0


def main(arguments: list[str]) -> int:
    """0: it has begun."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(WAIT_S)
            connection.connect(SOCKET)
            connection.sendall(json.dumps(["flwr-clientapp", *arguments]).encode() + b"\n")
            return 0 if connection.recv(1) == GO else 1
    except OSError:
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
