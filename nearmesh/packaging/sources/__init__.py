"""Where weights come from: a file beside model.toml, a wheel, a model hub, a URL or a registry; verified, then cached.

The cache holds each file under its SHA-256, so it needs no index and one file serves every package that names it.
"""

from nearmesh.packaging.sources.cache import CACHE_VARIABLE, default_cache, fetch
from nearmesh.packaging.sources.download import OnProgress, quiet
from nearmesh.packaging.sources.wheel import Download, pip_download

__all__ = ["CACHE_VARIABLE", "Download", "OnProgress", "default_cache", "fetch", "pip_download", "quiet"]
