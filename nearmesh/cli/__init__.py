"""The command line `nearmesh`: tables for people, `--json` for programs.

A failure is one line on stderr. gRPC's core would add its own lines to it (a handshake that failed takes four), and
takes the word to be silent only when it is imported: that is why this package, alone of the library, acts on import.
The variable is put back, so that processes which commands start log as they would.
"""

from __future__ import annotations

import os

_VERBOSITY = "GRPC_VERBOSITY"

# Its handlers around a fork crash the child before it becomes another program, one in twenty while calls are under way
# (grpcio 1.85); what a gateway begins needs none of them.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

if _VERBOSITY not in os.environ:
    os.environ[_VERBOSITY] = "NONE"
    import grpc as grpc

    del os.environ[_VERBOSITY]
