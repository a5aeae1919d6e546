"""What a hit is worth: constants and arithmetic, without a database.

The law: a score is a sum of parts that the hit carries. Two lists, by meaning and by words, are fused by their ranks
(reciprocal rank fusion: Cormack, Clarke, Büttcher, SIGIR 2009), since their scores have no scale in common.
Everything else is worth a few ranks: it decides between neighbours and lifts nothing from the bottom to the top.

Figures: recall of the evidence at 5, 10 and 20 of 231 questions on two conversations in LoCoMo's form was .749, .822,
.878 with these constants, and within .025 of that over wide ranges of each of them (docs/explain/memory.md).
"""

from __future__ import annotations

from collections.abc import Sequence

EXACT_ROWS = 20_000  # live rows of a scope up to which a search looks at all of them
NEAR_ROWS = 2_000  # the same for the look at near-duplicates that comes with each store
SAME = 0.97  # cosine from which two facts say the same
RESTATED = 0.9  # and from which they do where their words are the same but for fillers
DEPTH = 200  # rows of each list that are fused
BUDGET = 20_000  # rows of a large scope whose words are scored
SAMPLE = 20_000  # rows of a large scope in which words are counted
DAY = 86_400.0

# 1 / (k + rank). With 60, the usual constant, recall is .01 to .02 lower: the lists are short and good.
K = 20
# ts_rank's weights of words of the date (D), of the entry before the previous one (C), of the previous one (B), own
# (A).
WEIGHTS = (0.5, 0.4, 0.7, 1.0)
B = 0.5  # how far long texts are held back
BONUS_TEXT = 0.1  # of the best score, for rows whose actor the query names
BONUS_DENSE = 0.15  # of cosine, for the same

# One rank near the top is 1/21 - 1/22 = .002. What is from now, or as important as can be, is worth two of them.
RECENCY = 0.004
HALF_LIFE = 7 * DAY
IMPORTANCE = 0.008  # times (importance - 0.5)
TRUSTED = 0.006  # times trust / 3: between the web (0) and a user (2) lie two ranks

PARTS = ("text", "dense", "recency", "importance", "trust")

CONSTANTS: dict[str, object] = {
    "k": float(K),
    "weights": list(WEIGHTS),
    "b": B,
    "bonus_text": BONUS_TEXT,
    "bonus_dense": BONUS_DENSE,
    "recency": RECENCY,
    "half_life": HALF_LIFE,
    "importance": IMPORTANCE,
    "trusted": TRUSTED,
    "budget": BUDGET,
}


def parts(row: Sequence[float]) -> dict[str, float]:
    """The parts of a score, in the order of the statement, then the ranks and the cosine that they come from."""
    text, dense, recency, importance, trust, text_rank, dense_rank, cosine = row
    return {
        "text": text,
        "dense": dense,
        "recency": recency,
        "importance": importance,
        "trust": trust,
        "text_rank": text_rank,
        "dense_rank": dense_rank,
        "cosine": cosine,
    }
