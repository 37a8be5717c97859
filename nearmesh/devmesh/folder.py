"""What a local mesh's folder holds under a fixed name, for whoever looks for one; light to import."""

from __future__ import annotations

# The addresses and process ids that scripts may rely on; there once the mesh is up.
MESH_FILE = "mesh.json"
