"""An office's witness follows the ledger through the office's own account, and no way into the office is open."""

import asyncio
from pathlib import Path

from services.ledger.log import tree
from services.ledger.log.cosigning import QUERIES, Cosigning
from services.ledger.log.notes import COSIGNATURE, Key, Note, Policy, checkpoint
from services.ledger.log.witness import Memory, Witness, follow
from services.ledger.store import Signed
from shared.bus import Bus, Request
from tests.examples import QINGSHAN, WUCHANG
from tests.security.bus_world import World

ORIGIN = "ledger.example/main/1"
LOG = Key.make(ORIGIN)
LEAF = tree.leaf_hash(b"one")


class Kept:
    """Cosignatures in memory."""

    def __init__(self) -> None:
        self.lines: dict[int, list[str]] = {}

    async def put_cosignature(self, size: int, witness: str, line: str) -> None:
        """Keep one."""
        assert witness in line
        self.lines.setdefault(size, []).append(line)

    async def checkpoint(self, size: int | None = None) -> Signed | None:
        """None is asked for: one instance signs."""

    async def cosignatures(self, size: int) -> list[str]:
        """Those that are kept."""
        return self.lines.get(size, [])


def signed(size: int) -> Note:
    """A checkpoint of so many equal leaves."""
    body = checkpoint(ORIGIN, size, tree.root_of([LEAF] * size), tree.EMPTY).body
    return Note(body).signed([LOG.sign(body)])


async def test_a_witness_asks_through_its_own_office_and_enough_of_them_make_a_checkpoint(
    world: World, tmp_path: Path
) -> None:
    keys = {district: Key.make(f"witness.{district}.example", COSIGNATURE) for district in (WUCHANG, QINGSHAN)}
    lines = [f"witness {district} {key.verifier.text}" for district, key in keys.items()]
    policy = Policy.parse(
        "\n".join([f"log {LOG.verifier.text}", *lines, "group both all " + " ".join(keys), "quorum both"])
    )
    kept, stop = Kept(), asyncio.Event()

    async def prove(old: int, new: int) -> list[bytes]:
        assert (old, new) == (1, 2)
        return [LEAF]

    made = Cosigning(ORIGIN, lambda: [LOG.verifier], policy, kept, prove)
    await made.announce(signed(1))
    nonsense = [b"{", b'{"problem":"x"}', b"[]"]  # must not end what follows the ledger

    async def answer(request: Request) -> None:
        await (request.answer(nonsense.pop()) if nonsense else made.answer(request))

    async with world.service("ledger") as ledger:
        serving = await ledger.serve(QUERIES, answer, alone=True, apart=True)
        witnesses, tasks, buses = [], [], []
        for district, key in keys.items():
            witnesses.append(Witness(key, [LOG.verifier], Memory(tmp_path / district)))
            buses.append(await Bus.connect(world.server.url, name="board", seed=world.apps[district, "board"]))
            tasks.append(asyncio.create_task(follow(buses[-1], district, witnesses[-1], ORIGIN, stop)))
        async with asyncio.timeout(10):
            while made.cosigned is None:
                await asyncio.sleep(0.01)
            assert policy.check(made.cosigned) == [*keys]
            await made.announce(signed(2))
            while len(kept.lines.get(2, ())) < 2:
                await asyncio.sleep(0.01)
        assert [witness.size(ORIGIN) for witness in witnesses] == [2, 2]
        stop.set()
        await made.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for witness, bus in zip(witnesses, buses, strict=True):
            witness.memory.close()
            await bus.drain()
        await serving.end()


async def test_nobody_asks_in_the_name_of_another_office_and_people_do_not_witness(world: World) -> None:
    async with world.app(WUCHANG) as seat:
        await seat.nc.publish(f"qry.{QINGSHAN}.witness.next", b"{}", reply="_INBOX_board.1")
        await seat.settle()
        assert seat.refused("permissions violation for publish")
    async with world.person(world.token("admin")) as seat:
        await seat.nc.publish(f"qry.{WUCHANG}.witness.next", b"{}", reply="_INBOX_staff-1.1")
        await seat.settle()
        assert seat.refused("permissions violation for publish")
