"""Other registries than the mesh's own: pushing versions to them, pulling from them, and proving what they hold."""
