"""The one history of all tables. `trellis migrate` applies it."""
