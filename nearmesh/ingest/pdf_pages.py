"""The process that takes a PDF's text out: the file on stdin, JSON on stdout, within bounds that the kernel keeps."""

from __future__ import annotations

import json
import logging
import resource
import sys
from io import BytesIO
from typing import Any

# Address space, most of which a file that is sound never needs.
MEMORY_BYTES = 2 * 1024**3
# Should whoever started it be gone; else it is ended sooner.
CPU_S = 600
MAX_PAGES = 20_000
MAX_CHARACTERS = 16 * 1024**2


def main() -> None:
    # Its warnings are of no use to anybody here.
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    json.dump(pages(sys.stdin.buffer.read()), sys.stdout)


def pages(data: bytes) -> dict[str, Any]:
    """The text of each page, or what is wrong."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, FileNotDecryptedError, PyPdfError

    found: list[str] = []
    characters = 0
    try:
        reader = PdfReader(BytesIO(data))
        if len(reader.pages) > MAX_PAGES:
            return {"error": f"{len(reader.pages)} pages, above the limit of {MAX_PAGES}"}
        for page in reader.pages:
            found.append(page.extract_text())
            characters += len(found[-1])
            if characters > MAX_CHARACTERS:
                return {"error": f"more than {MAX_CHARACTERS} characters of text"}
    except (FileNotDecryptedError, DependencyError):
        return {"error": "encrypted with a password; save it without one"}
    except (PyPdfError, RecursionError, *_BUGS) as error:
        where = f"page {len(found) + 1}: " if found else ""
        return {"error": f"damaged: {where}{type(error).__name__}: {str(error)[:200]}"}
    return {"pages": found}


# What a damaged file brings out of pypdf beside its own errors.
_BUGS = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, TypeError, ValueError, OSError)


if __name__ == "__main__":
    main()
