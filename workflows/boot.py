"""What a worker imports right before the user's own modules: it imports them itself.

The law: a module that does not run is one message that names its line, not the way through Celery's loader.
"""

from __future__ import annotations

from ..tasks.errors import TrellisError
from ..tasks.settings import current
from .modules import import_all

try:
    import_all(current().imports)
except TrellisError as error:
    raise SystemExit(f"trellis: {error}") from None
