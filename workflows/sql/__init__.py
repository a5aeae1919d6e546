"""The engine's hot statements, as named blocks (read by tasks/queries.py)."""
