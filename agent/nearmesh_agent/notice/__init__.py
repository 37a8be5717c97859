"""Who says that this machine is about to be taken away, and what follows for the node."""
