"""
The error tree. What an error is decides what happens next (design §4).

    PaidanError
    ├── RefusedError          the caller is told why and nothing changes: an RFC 9457 problem
    ├── MalformedError        bytes on the bus that are no fact: set aside by name, never in the way
    ├── BusError              the bus said no, or said nothing in time
    │   ├── UnavailableError  not now: try again
    │   ├── ConflictError     somebody else wrote first
    │   └── TooManyFactsError one batch cannot hold it
    ├── FencedError           another leader has written: fold and decide again
    └── StreamReplacedError   the stream is not the one this state was folded from: stop, a person must look
"""

from __future__ import annotations


class PaidanError(Exception):
    """Everything Paidan raises on purpose."""


class RefusedError(PaidanError):
    """
    A request or command that is answered with a problem and changes nothing.

    Args:
        code: the stable code, a key of `shared.problems.PROBLEMS`.
        field: which field is wrong, as a path (`location.lon`).
        facts: what the texts are filled in with, and what a program may read.
    """

    def __init__(self, code: str, *, field: str | None = None, **facts: str | int | float) -> None:
        super().__init__(code, field, facts)
        self.code = code
        self.field = field
        self.facts = facts

    def __str__(self) -> str:
        return self.code + (f" ({self.field})" if self.field else "")


class MalformedError(PaidanError):
    """A message under `evt.` that is not a fact. `code` is one of `json type schema subject size canonical`."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


class BusError(PaidanError):
    """The bus refused; `code` is JetStream's `err_code` where it gave one."""

    def __init__(self, detail: str, code: int = 0) -> None:
        super().__init__(detail)
        self.code = code


class UnavailableError(BusError):
    """Not connected, or no answer in time: what was sent may still have been stored."""


class ConflictError(BusError):
    """The fence did not hold: somebody else wrote first."""


class TooManyFactsError(BusError):
    """More messages than one atomic batch may hold."""


class FencedError(PaidanError):
    """Another leader has written since this one last did, or the lease ran out before the outcome of a commit was known."""


class StreamReplacedError(PaidanError):
    """The stream was made anew: positions and snapshots of the old one mean nothing in it."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(
            f"stream EVENTS was created {found}, but this state was folded from the one created {expected}"
        )
        self.expected = expected
        self.found = found
