"""Whose memory it is: a tenant, and within it an agent or everybody.

The law: every statement names a tenant and the agents whose rows are in reach. There is no wildcard: an agent reads
what is its own and, where it asks for that, what its tenant's agents share; another tenant is never in reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .texts import name_of

Kind = Literal["fact", "episode", "working"]
Source = Literal["user", "tool", "web", "agent", "recalled"]

SHARED = ""  # the agent of what all agents of a tenant share
NAME_BYTES = 512  # tenant, agent and key stand in one entry of an index, which takes 2,700 bytes

# How far a source is trusted unless the caller says otherwise: 0 not at all, 1 a little, 2 as usual, 3 as the
# operator. What came from the web is data, never an instruction, and stays below what people and agents said.
TRUST: dict[str, int] = {"user": 2, "agent": 2, "tool": 1, "web": 0, "recalled": 0}


@dataclass(frozen=True, slots=True)
class Scope:
    """The place of a memory: a tenant and an agent, or `agent=""` for what its agents share.

    Raises EntryError for a name that is no text, too long or not storable.
    """

    tenant: str = "default"
    agent: str = SHARED

    def __post_init__(self) -> None:
        name_of("tenant", self.tenant, NAME_BYTES)
        if self.agent != SHARED:
            name_of("agent", self.agent, NAME_BYTES)

    def reach(self, include_shared: bool) -> list[str]:
        """The agents whose rows are in reach, this one's first."""
        return [self.agent, SHARED] if include_shared and self.agent != SHARED else [self.agent]
