"""What dispatch reads from its environment."""

from __future__ import annotations

from shared.settings import ServiceSettings


class Settings(ServiceSettings):
    """`PAIDAN_DISTRICTS`: codes of the districts whose desks this instance may lead, comma-separated; `*` for all in the register."""

    districts: str = "*"
    snapshot_facts: int = 50_000
    tail_events: int = 20_000
    """How many of the newest facts the live stream keeps in memory for those who were away for a moment."""
    stream_clients: int = 800
    """How many may watch the live stream of this process at a time; each holds an open file."""
