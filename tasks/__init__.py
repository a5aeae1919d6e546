"""The ground floor: run one function reliably.

Settings, errors, logs, the database with its migrations, the Celery application, the embedded servers
and the command line. `celery -A trellis.tasks worker` starts a worker.
"""

if not __name__.startswith("trellis."):
    raise ImportError("import trellis.tasks, not tasks: the repository's root is on sys.path")

from .app import app
from .errors import TrellisError
from .retry import Retry
from .settings import Settings

__all__ = ["Retry", "Settings", "TrellisError", "app"]
