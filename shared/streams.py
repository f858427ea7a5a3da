"""
Every stream and bucket of the bus, declared once; `paidan bus apply` brings a server to it.

Only the `admin` identity may do that: no service can create, change, purge or delete a stream at run time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

KV: dict[str, Any] = {
    "max_msgs_per_subject": 1,
    "discard": "new",
    "allow_direct": True,
    "allow_rollup_hdrs": True,
    "storage": "file",
}


def declared(replicas: int = 1) -> tuple[dict[str, Any], ...]:
    """
    The streams in the server's own words.

    EVENTS keeps every fact for ever and stores whole batches only; staff apps see `live.evt.>`, which is republished once a
    message is stored, because plain subscribers of `evt.>` would also see batches that are then refused. SEALED and KEYS are
    plain streams: a key-value bucket forbids deleting by sequence, which is what really erases. They and CONTACTS hold every message
    until it is deleted so: one that a later one pushes out (`max_msgs_per_subject`) stays on the disk. CHECKPOINTS holds what the
    ledger signed last, outside its database: nobody takes it away, the next one takes its place.
    """
    streams: tuple[dict[str, Any], ...] = (
        {
            "name": "EVENTS",
            "subjects": ["evt.>"],
            "storage": "file",
            "discard": "new",
            "allow_atomic": True,
            "deny_delete": True,
            "deny_purge": True,
            "allow_direct": False,
            "duplicate_window": 1_000_000_000,
            "republish": {"src": "evt.>", "dest": "live.evt.>"},
        },
        {
            "name": "SEALED",
            "subjects": ["sealed.>"],
            "storage": "file",
            "discard": "new",
            "max_msgs_per_subject": -1,
            "allow_atomic": True,
        },
        {
            "name": "KEYS",
            "subjects": ["keys.>"],
            "storage": "file",
            "discard": "new",
            "max_msgs_per_subject": -1,
            "allow_atomic": True,
        },
        {
            "name": "KV_CONTACTS",
            "subjects": ["$KV.CONTACTS.>"],
            **KV,
            "allow_rollup_hdrs": False,
            "max_msgs_per_subject": -1,
        },
        {
            "name": "KV_CHECKPOINTS",
            "subjects": ["$KV.CHECKPOINTS.>"],
            **KV,
            "allow_rollup_hdrs": False,
            "deny_delete": True,
            "deny_purge": True,
        },
        {"name": "KV_LEASES", "subjects": ["$KV.LEASES.>"], **KV, "allow_msg_ttl": True},
        {
            "name": "OBJ_SNAPSHOTS",
            "subjects": ["$O.SNAPSHOTS.C.>", "$O.SNAPSHOTS.M.>"],
            "storage": "file",
            "discard": "new",
            "allow_direct": True,
            "allow_rollup_hdrs": True,
        },
    )
    return tuple({"retention": "limits", "num_replicas": replicas, **stream} for stream in streams)


class Admin(Protocol):
    """What applying needs of the bus."""

    async def stream_config(self, name: str) -> dict[str, Any] | None:
        """The stream's configuration, or None."""

    async def apply_stream(self, config: Mapping[str, Any], *, new: bool) -> None:
        """Create or update it."""


async def apply(bus: Admin, *, replicas: int = 1, dry_run: bool = False) -> list[str]:
    """
    Bring the server's streams to what is declared; doing it twice changes nothing.

    Returns: the changes as lines, `+ EVENTS` for a new stream, `~ EVENTS discard: old → new` for a changed setting.
    """
    changes: list[str] = []
    for stream in declared(replicas):
        have = await bus.stream_config(stream["name"])
        if have is None:
            changes.append(f"+ {stream['name']}")
            if not dry_run:
                await bus.apply_stream(stream, new=True)
            continue
        differs = {key: (have.get(key), want) for key, want in stream.items() if not _same(have.get(key), want)}
        changes += [f"~ {stream['name']} {key}: {old} → {want}" for key, (old, want) in differs.items()]
        if differs and not dry_run:
            await bus.apply_stream({**have, **stream}, new=False)
    return changes


def _same(have: Any, want: Any) -> bool:
    if isinstance(want, dict):
        return isinstance(have, dict) and all(have.get(key) == value for key, value in want.items())
    return (have or False) == (want or False)  # the server leaves out what is off
