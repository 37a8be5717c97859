"""Files of models on a hub, by its resolve URL: ENDPOINT/OWNER/NAME/resolve/COMMIT/FILE.

The hub's own library knows its usual endpoint and where a login left its token; with the variables HF_ENDPOINT and
HF_TOKEN one does without the library.
"""

from __future__ import annotations

import os
from urllib.parse import quote

from nearmesh.errors import PackageError
from nearmesh.package import Source
from nearmesh.package.source import is_safe_url
from nearmesh.packaging.sources.download import Remote

ENDPOINT_VARIABLE = "HF_ENDPOINT"
TOKEN_VARIABLE = "HF_TOKEN"

_LOGIN = f"a model that is private or asks for consent needs a token in {TOKEN_VARIABLE}, whose owner has access"


def hub_file(source: Source) -> Remote:
    """Where a source's file lies. Raises PackageError when no hub is known."""
    assert source.hf is not None and source.revision is not None and source.file is not None
    token = _token()
    gone = "check the model's name, the commit and the file"
    return Remote(
        name=f"{source.file} of {source.hf}",
        url=f"{_endpoint()}/{source.hf}/resolve/{source.revision}/{quote(source.file)}",
        headers={"authorization": f"Bearer {token}"} if token else {},
        remedies={401: f"{gone}; {_LOGIN}", 403: _LOGIN, 404: gone},
    )


def _endpoint() -> str:
    endpoint = os.environ.get(ENDPOINT_VARIABLE, "")
    if not endpoint:
        try:
            from huggingface_hub import constants
        except ImportError:
            raise PackageError(
                f"a source from a hub needs to know which: pip install huggingface_hub, or set {ENDPOINT_VARIABLE}"
            ) from None
        endpoint = str(constants.ENDPOINT)
    if not is_safe_url(endpoint):
        raise PackageError(f"{ENDPOINT_VARIABLE} is {endpoint!r}; expected https://HOST")
    return endpoint.rstrip("/")


def _token() -> str | None:
    if token := os.environ.get(TOKEN_VARIABLE):
        return token.strip()
    try:
        from huggingface_hub import get_token
    except ImportError:
        return None
    found: str | None = get_token()
    return found
