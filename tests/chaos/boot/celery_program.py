"""The command `celery` of a stage, in a process that was forked: it reads the clock of its environment from here on."""

import os
import sys

import sitecustomize
from celery.__main__ import main

if __name__ == "__main__":
    sitecustomize.use(os.environ.get("CHAOS_CLOCK"))
    sys.argv[0] = "celery"
    main()
