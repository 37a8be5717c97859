"""The runtimes that execute a model version; the rest of the agent knows them through `base` alone."""
