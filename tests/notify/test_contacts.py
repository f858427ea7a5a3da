"""How members are reached is remembered for half a minute, and not where they have been erased."""

from __future__ import annotations

import gc
import json
from datetime import UTC, datetime

from services.notify.channels import Cap, Channels
from services.notify.contacts import FRESH_S, NOBODY, Contacts
from shared.bus import Stored
from shared.facts import MemberErased, NoticeSent
from tests.notify.conftest import Ground, WebReceiver, until
from tests.notify.examples import LI, WANG, WUCHANG, fact_of_the_desk, offered
from tests.notify.test_sending import soon


class Kept:
    """A bus with contacts."""

    def __init__(self) -> None:
        self.contacts = {f"$KV.CONTACTS.{WUCHANG}.{LI}": json.dumps({"phone": "13900000000"}).encode()}
        self.asked: list[str] = []

    async def last(self, subject: str, *, stream: str) -> Stored | None:
        """What is kept."""
        self.asked.append(subject.rpartition(".")[2])
        found = self.contacts.get(subject)
        return Stored(1, found, None, datetime.now(UTC)) if found else None


async def test_what_is_too_old_is_dropped_whoever_is_looked_up() -> None:
    now, bus = 0.0, Kept()
    contacts = Contacts(bus, clock=lambda: now)
    await contacts.look_up(WUCHANG, [LI, WANG])
    await contacts.look_up(WUCHANG, [LI, WANG])
    assert sorted(bus.asked) == [LI, WANG]
    assert contacts.known(WUCHANG, WANG) is NOBODY
    now = FRESH_S
    await contacts.look_up(WUCHANG, ["m-other"])
    assert "13900000000" not in held(contacts)
    assert contacts.known(WUCHANG, LI) is None


async def test_who_is_erased_is_forgotten_at_once() -> None:
    contacts = Contacts(Kept())
    await contacts.look_up(WUCHANG, [LI])
    assert "13900000000" in held(contacts)
    contacts.forget(WUCHANG, LI)
    assert "13900000000" not in held(contacts)


def held(contacts: Contacts) -> str:
    """Everything that is remembered."""
    return str([(known.phone, known.channels) for _, known in contacts._known.values()])


async def test_a_contact_s_url_is_kept_no_longer_than_a_message_is_on_its_way_and_its_cap_holds() -> None:
    channels = Channels({}, caps={"webhook": Cap(1, 3600)})
    url = "json://192.0.2.1/topsecret"
    found = channels.find(url)
    assert found is not None
    assert found.bucket.take() == 0
    assert channels.find(url) is found
    del found
    gc.collect()
    assert not channels._given
    assert "topsecret" not in str(vars(channels))
    again = channels.find(url)
    assert again is not None
    assert again.bucket.take() > 0


async def test_what_waits_for_a_member_who_is_erased_does_not_reach_them(ground: Ground, web: WebReceiver) -> None:
    await ground.contact(LI, channels=[web.url.replace("{id}", "li")])
    await ground.notify(caps={"webhook": Cap(1, 60)})
    await ground.publish(
        *(offered(LI, until=soon(), task=f"01890000-0000-7000-8000-00000000000{n}", n=n) for n in range(2))
    )
    await until(lambda: len(web.taken) == 1)
    await ground.admin.erase("KV_CONTACTS", f"$KV.CONTACTS.{WUCHANG}.{LI}")
    await ground.publish(fact_of_the_desk(MemberErased(member_id=LI)))
    sent = [fact.fact for fact in await ground.facts("notice.sent", 2)]
    assert [fact.channel for fact in sent if isinstance(fact, NoticeSent)] == ["webhook", "console"]
    assert len(web.taken) == 1
