"""A log in memory that answers as the store does: what folds and replays read, without a database."""

from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from services.ledger.cases import Case
from services.ledger.log import heads, leaves
from services.ledger.log.leaves import Leaf, Prefix
from services.ledger.projecting import fold, stored_leaf
from services.ledger.store import Selection, Signed
from shared.bus import Delivery
from shared.envelope import Envelope
from shared.facts import HUB
from tests.ledger.examples import message

ORIGIN = "paidan.test/main/1"
RECORDED_NS = 1_795_309_323_456_789_012
CREATED = "2026-11-22T01:00:00.000000001Z"


class Memory:
    """Leaves, and what the store would say of them."""

    def __init__(self) -> None:
        self.leaves: list[Leaf] = []
        self._prefix = Prefix(ORIGIN, created=CREATED)
        self.notes: dict[int, tuple[str, int]] = {}

    def add(self, *events: Envelope | tuple[str, bytes], apart_ns: int = 1_000_000) -> None:
        """More messages, so far apart."""
        for each in events:
            subject, data = each if isinstance(each, tuple) else message(each)
            sequence = self._prefix.sequence + 1
            delivery = Delivery(sequence, RECORDED_NS + sequence * apart_ns, subject, data)
            self.leaves += leaves.extend(self._prefix, [leaves.read(delivery)], {})

    def sign(self, note: str | None = None) -> None:
        """A checkpoint of what there is."""
        self.notes[len(self.leaves)] = (note or f"note of {len(self.leaves)}", self._prefix.newest_ns)

    def of(self, selection: Selection, since: int, below: int) -> list[Leaf]:
        return [leaf for leaf in self.leaves[since : min(below, len(self.leaves))] if chosen(leaf, selection)]

    async def size(self) -> int:
        return len(self.leaves)

    async def read(self, selection: Selection, since: int, below: int, limit: int) -> list[tuple[int, bytes]]:
        return [(leaf.index, leaf.data) for leaf in self.of(selection, since, below)[:limit]]

    async def chunks(
        self, selection: Selection, since: int, below: int, limit: int | None, size: int
    ) -> AsyncGenerator[list[tuple[int, bytes]]]:
        found = self.of(selection, since, below)[:limit]
        for n in range(0, len(found), size):
            yield [(leaf.index, leaf.data) for leaf in found[n : n + size]]

    async def count(self, selection: Selection, since: int, below: int) -> int:
        return len(self.of(selection, since, below))

    async def ordinal(
        self, *, district: str | None = None, request: str | None = None, below: int | None = None
    ) -> int:
        found = self.of(Selection(district=district, request=request), 0, 2**53 if below is None else below)
        return len(found)

    async def rare(self, *, since: int = 0, below: int | None = None) -> list[tuple[str, int, bytes | None]]:
        found = self.leaves[since:below]
        return [(leaf.kind, 1, leaf.data) for leaf in found if leaf.kind != leaves.EVENT]

    async def scopes(self, below: int | None = None) -> heads.Scopes:
        found: dict[str, tuple[int, int]] = {}
        for leaf in self.leaves[:below]:
            for district in leaf.districts:
                found[district] = found.get(district, (0, 0))[0] + 1, leaf.index
        return found

    async def checkpoint(self, size: int | None = None) -> Signed | None:
        found = [each for each in self.notes if size is None or each <= size]
        return Signed(max(found), *self.notes[max(found)], datetime.fromtimestamp(0, UTC)) if found else None

    async def cosignatures(self, size: int) -> list[str]:
        return []

    async def by_cases(
        self, selection: Selection, after: tuple[str, int], below: int, limit: int
    ) -> list[tuple[str, int, bytes]]:
        found = [(leaf.case, leaf.index, leaf.data) for leaf in self.of(selection, 0, below) if leaf.case]
        return [each for each in sorted(found) if each[:2] > after][:limit]

    async def list_cases(
        self,
        by: Mapping[str, str],
        *,
        district: str | None,
        below: int | None,
        limit: int,
        closed: Collection[str] = (),
    ) -> list[Case]:
        kept: Any = {}
        fold(kept, [stored_leaf(leaf.index, leaf.data) for leaf in self.leaves])
        found = [case for case in kept.values() if district is None or district in case["districts"]]
        found = [case for case in found if below is None or case["first"] < below]
        return sorted(found, key=lambda case: -case["first"])[:limit]


def chosen(leaf: Leaf, asked: Selection) -> bool:
    """As the store's query chooses."""
    lists: Iterable[bool] = (
        asked.kinds is None or leaf.kind in asked.kinds,
        asked.scopes is None or bool({*asked.scopes} & {*leaf.districts}),
        asked.district is None
        or (asked.district in leaf.districts and asked.district in (asked.scopes or leaf.districts)),
        asked.parties is None or {*asked.parties} <= {*leaf.districts},
        asked.area is None or leaf.area == asked.area,
        asked.request is None or leaf.case == asked.request,
        asked.types is None or leaf.type in asked.types,
        asked.event is None or leaf.event_id == asked.event,
        asked.time_from is None or (leaf.time is not None and leaf.time >= asked.time_from),
        asked.time_to is None or (leaf.time is not None and leaf.time < asked.time_to),
        not asked.lost or leaf.area not in asked.lost or leaf.districts[0] in ((asked.scopes or ("",))[0], HUB),
    )
    return all(lists)
