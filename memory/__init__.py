"""What the system remembers for people and agents.

This door opens with the memory release. It will hold: embeddings behind one protocol; vector, episodic,
working and hybrid memory in Postgres with pgvector, scoped to tenant and agent; and the append-only
audit log that the engine and the agents write in the transaction of what they record.
"""

if not __name__.startswith("trellis."):
    raise ImportError("import trellis.memory, not memory: the repository's root is on sys.path")
