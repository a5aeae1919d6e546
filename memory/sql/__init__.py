"""The memory's statements, as named blocks (read by tasks/queries.py)."""
