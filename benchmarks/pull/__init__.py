"""What it takes to bring a model to nodes: over a WAN of known speed and length, and until its first answer."""
