"""The Celery application. Nobody else builds one.

The law: importing this module costs no connection and needs no setting; the configuration is read from
`trellis.celeryconfig` when Celery first needs it. It does not become the process's current application: that is
the user's own, whose shared tasks and signatures would else go to our broker and queues.
"""

from __future__ import annotations

from celery import Celery

app = Celery("trellis", set_as_current=False)
app.config_from_object("trellis.celeryconfig")


def sender(broker_url: str) -> Celery:
    """An application that only sends, to a broker that is not the environment's."""
    other = Celery("trellis", set_as_current=False)
    other.config_from_object("trellis.celeryconfig")
    other.conf.broker_url = broker_url
    return other


def reader(result_backend_url: str) -> Celery:
    """An application that only reads results, from another application's backend."""
    other = Celery("trellis", set_as_current=False, backend=result_backend_url)
    other.conf.update(accept_content=["json"], result_accept_content=["json"])
    return other
