"""The fault suite: seeded programs, faults at named points of a worker, and a ledger outside that is the judge.

    python -m chaos --cases 1000 --seed 1        (`make chaos CASES=1000 SEED=1`)

A case is (program, kill point, fault, seed), all drawn from its seed (`cases`). Its runs go to real workers
(`stage`), in which `points` has wrapped the engine's methods: at the n-th passage of the case's point the fault
happens (`trigger`). At the end `laws` compares the ledger that the bodies wrote, and the journal, with what the
program must come to (`programs`). Nothing in the product knows of any of this.
"""

import sys
from pathlib import Path

# `forks` is there: for whoever comes by `python -m chaos`.
sys.path.append(str(Path(__file__).parents[1] / "support"))
