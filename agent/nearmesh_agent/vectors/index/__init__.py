"""A table in memory, made from the store and the journal: vectors, scalar fields and texts, searched beside one writer.

Rows stand in slots in the order of their writing; a slot's content never changes, so that readers need no lock. Old
rows are in inverted lists (faiss), the fresh ones after them are searched exactly.
"""

from nearmesh_agent.vectors.index.memory import MemoryIndex

__all__ = ["MemoryIndex"]
