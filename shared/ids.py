"""Ids: random ones for the doors, derived ones for everything that must come out the same when repeated."""

from __future__ import annotations

from hashlib import blake2b

from uuid_utils import uuid7


def new_id() -> str:
    """A UUIDv7: for ids that a person or a client brings into the system. Never called by a domain module."""
    return str(uuid7())


def derived_id(*parts: object) -> str:
    """
    The UUIDv8 that these parts always give.

    A decision that is taken again (after a crash, in an audit) names its facts and tasks by what led to them,
    so that the same decision gives the same ids.
    """
    h = blake2b("\x1f".join(map(str, parts)).encode(), digest_size=16).hexdigest()
    return f"{h[:8]}-{h[8:12]}-8{h[13:16]}-{'89ab'[int(h[16], 16) & 3]}{h[17:20]}-{h[20:]}"
