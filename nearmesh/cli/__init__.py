"""The command line `nearmesh`: tables for people, `--json` for programs.

A failure is one line on stderr. gRPC's core would add its own lines to it (a handshake that failed takes four), and
takes the word to be silent only when it is imported: that is why this package, alone of all, acts on import. The
variable is put back, so that processes which commands start log as they would.
"""

from __future__ import annotations

import os

_VERBOSITY = "GRPC_VERBOSITY"

if _VERBOSITY not in os.environ:
    os.environ[_VERBOSITY] = "NONE"
    import grpc as grpc

    del os.environ[_VERBOSITY]
