"""From a package's folder to an artifact: weights fetched and verified, the package checked, its manifest made."""
