"""The SDK in a process of its own.

    python sdk_client.py BOOTSTRAP STATE_FOLDER

Reads a JSON command on each line: {"model", "x", "timeout_s"?}, and prints a JSON answer for each: {"node", "y"} or
{"error", "detail"}. What it logs goes to stderr.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

from nearmesh.client import connect_sync
from nearmesh.errors import MeshError


def main(bootstrap: str, state: str) -> None:
    logging.basicConfig(level=logging.WARNING)
    with connect_sync(bootstrap, state=Path(state)) as mesh:
        for line in sys.stdin:
            command: dict[str, Any] = json.loads(line)
            x = np.array(command["x"], np.float32)
            try:
                found = mesh.infer(command["model"], {"x": x}, deadline_s=command.get("timeout_s", 10))
                answer = {"node": found.receipt.node, "y": found["y"].tolist()}
            except MeshError as error:
                answer = {"error": error.reason, "detail": error.message}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
