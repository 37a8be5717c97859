"""PDF: the text of its pages, taken out by a process of its own, since a file may be made to last or to grow."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from nearmesh.errors import NotInstalled
from nearmesh.ingest.document import Content, Numbered, Unreadable
from nearmesh.ingest.plain import Paragraphs
from nearmesh.ingest.reading import MAX_FILE_BYTES, clean

# A page takes some 50 ms, a dense one a second.
LIMIT_S = 300.0
# A word that a line's end divides.
_DIVIDED = re.compile(r"(?<=[^\W\d_])-\n(?=[a-zà-ÿ])")


def read_pdf(data: bytes, limit_s: float = LIMIT_S) -> Content:
    """Raises Unreadable, NotInstalled."""
    if not data[:1024].lstrip().startswith(b"%PDF-"):
        raise Unreadable("not a PDF")
    if find_spec("pypdf") is None:
        raise NotInstalled("reading PDF needs pypdf: pip install 'nearmesh[ingest]'")
    return _content([_DIVIDED.sub("", clean(page)).strip() for page in _pages(data, limit_s)])


def _pages(data: bytes, limit_s: float) -> Sequence[str]:
    # Without the present folder among those of modules: it may be the one that is imported.
    command = [sys.executable, "-P", "-m", "nearmesh.ingest.pdf_pages"]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        raise Unreadable(f"its text was not found within {limit_s:g} s") from None
    if done.returncode or len(done.stdout) > MAX_FILE_BYTES:
        raise Unreadable("its text takes more memory than it may, or the file is damaged")
    found = json.loads(done.stdout)
    if error := found.get("error"):
        raise Unreadable(error)
    pages: Sequence[str] = found["pages"]
    if not any(page.strip() for page in pages):
        raise Unreadable(f"no text in its {len(pages)} pages; scanned ones need a text recognizer first")
    return pages


def _content(pages: Sequence[str]) -> Content:
    """A page's end is no end of a paragraph."""
    starts, at = [], 0
    for page in pages:
        starts.append(at)
        at += len(page) + 1
    text = "\n".join(pages)
    return Content(text, Paragraphs(text), Numbered("page", starts))
