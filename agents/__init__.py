"""Agents as durable workflows.

This door opens with the agents release. It will hold: LLM agents that plan, use tools, remember and
replan; workflow, decision, data and monitoring agents; messages between them, the registry and the
orchestrator. An agent's run is a run of `trellis.workflows` that grows: each call of a model or a tool is
a journalled step, so a crash resumes after the last finished one.
"""

if not __name__.startswith("trellis."):
    raise ImportError("import trellis.agents, not agents: the repository's root is on sys.path")
