"""Vectors of a site: a process beside the agent keeps and searches them; the agent lets callers in and embeds texts."""
