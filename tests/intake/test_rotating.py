"""The secret that wraps keys is changed while requests come in; facts and ciphertexts stay as they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import httpx2
import pytest

from services.intake.rewrapping import Rewrapping
from services.intake.sealing import NONCE_BYTES, Keys, UnreadableError
from shared.bus import Bus
from tests.intake.conftest import World, keyed
from tests.intake.crashing import Crash, Crashing
from tests.intake.examples import LEAK, QINGSHAN, WUCHANG
from tests.intake.ledger import Ledger

KID, KEY, NONCE = "ab" * 16, b"k" * 32, b"n" * NONCE_BYTES
BEFORE, AFTER = "b" * 64, "a" * 64


def keys(*keks: str) -> Keys:
    return Keys(pepper="p" * 64, keks=lambda: keks)


def test_a_key_names_what_wraps_it_and_is_opened_while_that_is_there() -> None:
    wrapped = keys(BEFORE).wrap(WUCHANG, KID, KEY, NONCE)
    assert keys(BEFORE).is_current(wrapped)
    assert not keys(AFTER, BEFORE).is_current(wrapped)
    again = keys(AFTER, BEFORE).rewrap(WUCHANG, KID, wrapped, NONCE)
    assert keys(AFTER).is_current(again)
    sealed = keys(BEFORE).unwrap(WUCHANG, KID, wrapped).seal("r", "f", {"text": "x"})
    assert keys(AFTER).unwrap(WUCHANG, KID, again).open("r", sealed) == {"text": "x"}
    with pytest.raises(UnreadableError):
        keys(AFTER).unwrap(WUCHANG, KID, wrapped)
    with pytest.raises(UnreadableError):
        keys(AFTER).unwrap(QINGSHAN, KID, again)


def test_a_key_from_before_there_were_names_is_opened_by_whichever_fits() -> None:
    unnamed = keys(BEFORE).wrap(WUCHANG, KID, KEY, NONCE)[9:]
    assert len(unnamed) == 60
    assert keys(AFTER, BEFORE).rewrap(WUCHANG, KID, unnamed, NONCE) == keys(AFTER).wrap(WUCHANG, KID, KEY, NONCE)
    with pytest.raises(UnreadableError):
        keys(AFTER).unwrap(WUCHANG, KID, unnamed)


# --- on the bus -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def secrets(world: World, tmp_path: Path) -> Path:
    """A secrets folder of this test's own."""
    return Path(shutil.copytree(world.identities.secrets_dir("intake"), tmp_path / "intake"))


def change(secrets: Path) -> None:
    """A new secret in place, the old one beside it."""
    (secrets / "district_kek").replace(secrets / "district_kek_old")
    (secrets / "district_kek").write_text(AFTER)


async def rewrap(by: httpx2.AsyncClient, token: str, **params: Any) -> httpx2.Response:
    return await by.post("/v1/keys/rewrap", headers=keyed("w-1", token), params=params)


async def test_keys_are_rewrapped_while_requests_come_in_and_the_old_secret_is_dropped(
    world: World, ledger: Ledger, secrets: Path
) -> None:
    one, other = [await world.instance(secrets_dir=secrets) for _ in range(2)]
    first = (await one.post("/v1/requests", json=LEAK, headers=keyed("k-1"))).json()
    before, ciphertexts, facts = [await world.messages(stream) for stream in ("KEYS", "SEALED", "EVENTS")]
    admin = world.token("root", "*", "admin")
    change(secrets)
    await other.post(
        "/v1/requests", json={**LEAK, "text": "又漏水了"}, headers=keyed("k-2")
    )  # with the key from before
    await other.post("/v1/requests", json={**LEAK, "contact": None}, headers=keyed("k-3"))  # with a key of its own
    dry = (await rewrap(one, admin, dry_run=True)).json()
    assert (dry["seen"], dry["rewrapped"], dry["after"]) == (2, 1, None)
    done = (await rewrap(one, admin)).json()
    assert (done["rewrapped"], done["unreadable"], done["after"]) == (1, 0, None)
    assert (await rewrap(other, admin)).json()["rewrapped"] == 0
    (secrets / "district_kek_old").unlink()

    clerk, body = world.token("staff-1", WUCHANG, "clerk"), {"why": "contact", "parts": ["contact"]}
    for by in (one, other):
        answer = await by.post(f"/v1/requests/{first['id']}/disclosures", json=body, headers=keyed("d-1", clerk))
        assert answer.json()["parts"] == {"contact": LEAK["contact"]}
    assert (await world.messages("SEALED"))[: len(ciphertexts)] == ciphertexts
    assert (await world.messages("EVENTS"))[: len(facts)] == facts
    assert before[1][1] not in world.on_disk()  # what the old secret could still open


async def test_only_an_admin_for_every_district_rewraps(world: World, intake: httpx2.AsyncClient) -> None:
    for district, role, code in (
        (WUCHANG, "admin", "everywhere_only"),
        ("*", "supervisor", "forbidden"),
        ("*", "auditor", "forbidden"),
    ):
        assert (await rewrap(intake, world.token("x-1", district, role))).json()["code"] == code


async def test_a_key_by_an_unknown_secret_is_counted_and_left(
    world: World, ledger: Ledger, submitted: dict[str, Any], secrets: Path
) -> None:
    held = await world.messages("KEYS")
    (secrets / "district_kek").write_text(AFTER)
    stranger = await world.instance(secrets_dir=secrets, commit_within_s=0.3)
    answer = (await rewrap(stranger, world.token("root", "*", "admin"))).json()
    assert (answer["seen"], answer["rewrapped"], answer["unreadable"]) == (1, 0, 1)
    assert await world.messages("KEYS") == held
    known = await stranger.post("/v1/requests", json={**LEAK, "text": "x 漏水"}, headers=keyed("k-2"))
    assert (known.status_code, known.json()["code"]) == (503, "unavailable")  # another instance may know it


async def test_wherever_it_is_broken_off_it_is_gone_on_with(world: World, intake: httpx2.AsyncClient) -> None:
    for n in range(3):
        body = {**LEAK, "contact": {"phone": f"1390000000{n}"}}
        assert (await intake.post("/v1/requests", json=body, headers=keyed(f"k-{n}"))).status_code == 201
    kek = (world.identities.secrets_dir("intake") / "district_kek").read_text()
    bus = await Bus.connect(world.server.url, name="intake", seed=world.identities.seed("intake"))
    world.stack.push_async_callback(bus.drain)
    for calls in range(12):
        newest, crashing = keys(f"{calls:064}", kek), Crashing(bus, calls, after=False)
        try:
            await Rewrapping(crashing, newest, random=lambda n: b"r" * n).page(None)
        except Crash:
            broken_off = True
        else:
            broken_off = False
        page = await Rewrapping(bus, newest, random=lambda n: b"r" * n).page(None)
        assert page.after is None
        held = [data for subject, data in await world.messages("KEYS") if ".by." not in subject]
        assert len(held) == 3
        assert all(newest.is_current(data) for data in held)
        kek = f"{calls:064}"
        if not broken_off:
            break
    assert calls == 6
