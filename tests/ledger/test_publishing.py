"""What the log publishes, over HTTP, checked as a stranger would: with the log's key and nothing else."""

import asyncio
import json
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from deploy import identities, signing
from deploy.errors import SetupError
from services.ledger.log import tree
from services.ledger.log.checkpoints import Keys
from services.ledger.log.notes import Checkpoint, Note, NoteError, Policy, Verifier
from services.ledger.log.tree import Tile
from tests.ledger.conftest import ORIGIN
from tests.ledger.examples import WUCHANG, life, message
from tests.ledger.test_api import Service, service  # noqa: F401

NONSENSE = b"nonsense"


async def signed(service: Service, size: int) -> Note:  # noqa: F811
    """The newest checkpoint, once it is of this size, by the key that the log says it has."""
    async with asyncio.timeout(10):
        while True:
            answer = await service.http.get("/checkpoint")
            if answer.status_code == 200:
                note = Note.parse(answer.text)
                if Checkpoint.parse(note.body).size >= size:
                    break
            await asyncio.sleep(0.05)
    log = (await service.http.get("/v1/log")).json()
    assert log["origin"] == ORIGIN
    assert set(note.verified(map(Verifier.parse, log["vkeys"]))) == {*map(Verifier.parse, log["vkeys"])}
    Policy.parse(log["policy"]).check(note)
    assert answer.headers["cache-control"] == "no-cache"
    return note


async def test_a_stranger_checks_the_whole_log_by_its_public_paths(service: Service) -> None:  # noqa: F811
    messages = [message(each) for n in range(70) for each in life(n)]
    await service.published(*messages[:500])
    first = Checkpoint.parse((await signed(service, 500)).body)
    await service.published(*messages[500:])
    note = await signed(service, 630)
    checkpoint = Checkpoint.parse(note.body)

    bundles = [(await service.get(f"/tile/entries/{path}")).content for path in ("000", "001", "002.p/118")]
    leaves = [leaf for bundle in bundles for leaf in unbundled(bundle)]
    hashes = [tree.leaf_hash(leaf) for leaf in leaves]
    assert (len(leaves), tree.root_of(hashes)) == (630, checkpoint.root)
    for tile, wanted in (
        (Tile(0, 1), hashes[256:512]),
        (Tile(0, 2, 118), hashes[512:]),
        (Tile(0, 2, 3), hashes[512:515]),
    ):
        answer = await service.http.get(f"/{tile.path}")
        assert (answer.content, "immutable" in answer.headers["cache-control"]) == (b"".join(wanted), True)
    assert (await service.http.get("/tile/1/000.p/2")).content == b"".join(
        tree.root_of(hashes[n : n + 256]) for n in (0, 256)
    )

    for index in (0, 255, 629):
        head, _, rest = (await service.http.get(f"/proof/{index}.tlog-proof")).text.split("\n", 1)[1].partition("\n\n")
        assert head.splitlines()[0] == f"index {index}"
        assert rest == note.text
        proof = [b64decode(line) for line in head.splitlines()[1:]]
        tree.verify_inclusion(hashes[index], index, 630, proof, checkpoint.root)
    older = (await service.http.get("/proof/3.tlog-proof", params={"size": first.size})).text
    assert Checkpoint.parse(Note.parse(older.partition("\n\n")[2]).body) == first
    between = (await service.http.get("/consistency", params={"from": first.size})).json()
    tree.verify_consistency(first.size, 630, first.root, checkpoint.root, [*map(b64decode, between["hashes"])])


def unbundled(bundle: bytes) -> list[bytes]:
    leaves = []
    while bundle:
        size = int.from_bytes(bundle[:2], "big")
        leaves.append(bundle[2 : 2 + size])
        bundle = bundle[2 + size :]
    return leaves


async def test_what_is_not_there_is_not_found_and_entries_are_for_auditors_of_everything(
    service: Service,  # noqa: F811
) -> None:
    await service.published(*[message(each) for each in life(1)])
    await signed(service, 9)
    for path in (
        *("/tile/0/001", "/tile/0/000", "/tile/0/000.p/10", "/tile/0/000.p/256", "/tile/0/0", "/tile/0/000.p/0"),
        *("/tile/64/000", "/tile/1/000.p/1", "/proof/9.tlog-proof", "/consistency?from=10", "/consistency?from=1&to=3"),
    ):
        answer = await service.http.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
    assert (await service.http.get("/tile/entries/000.p/9")).status_code == 401
    assert (await service.get("/tile/entries/000.p/9", "dispatcher")).status_code == 403
    assert (await service.get("/tile/entries/000.p/9", of=WUCHANG)).json()["code"] == "everywhere_only"
    assert (await service.get("/tile/entries/000.p/10")).status_code == 404


async def test_what_was_rejected_is_shown_with_its_reason_and_given_out_on_request(service: Service) -> None:  # noqa: F811
    good = message(life(1)[0])
    await service.published(good, ("evt.420106.x", NONSENSE), (good[0], b"{}"))
    first = (await service.get("/v1/rejects", limit=1)).json()
    [row] = first["rejects"]
    digest = sha256(NONSENSE).hexdigest()
    assert (row["index"], row["sequence"], row["kind"], row["subject"]) == (1, 2, "reject", "evt.420106.x")
    assert (row["reason"], row["digest"], row["size"]) == ("json", digest, len(NONSENSE))
    rest = (await service.get("/v1/rejects", cursor=first["next"])).json()
    assert ([row["index"] for row in rest["rejects"]], rest["next"]) == ([2], None)
    assert (await service.get(f"/v1/rejects/{digest}")).content == NONSENSE
    for path in ("/v1/rejects", f"/v1/rejects/{digest}"):
        assert (await service.get(path, of=WUCHANG)).json()["code"] == "everywhere_only"
    assert (await service.get(f"/v1/rejects/{'0' * 64}")).status_code == 404


# --- changing the key -------------------------------------------------------------------------------------------------


def test_both_keys_sign_until_the_day_and_the_new_one_alone_behind_it(tmp_path: Path) -> None:
    file, now = tmp_path / "key", datetime.now(UTC)
    keys = Keys(ORIGIN, file)
    assert (keys.signing(now), keys.verifiers) == ([], [])
    file.write_text("11" * 32)
    (tmp_path / "key_old").write_text(f"{'22' * 32} {(now + timedelta(days=1)).isoformat()}")
    assert [key.seed[:1] for key in keys.signing(now)] == [b"\x11", b"\x22"]
    assert [key.seed[:1] for key in keys.signing(now + timedelta(days=2))] == [b"\x11"]
    assert len(keys.verifiers) == 2
    file.write_text("not hex")
    with pytest.raises(NoteError, match="32 bytes"):
        keys.signing(now)


async def test_a_rotation_is_on_record_and_may_be_broken_off_anywhere(
    service: Service,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = service.identities.secrets_dir("ledger")
    seed = (folder / "ledger_signing_key").read_text()
    (tmp_path / "secrets").symlink_to(folder.parent)
    await service.published(*[message(each) for each in life(1)])
    before = Checkpoint.parse((await signed(service, 9)).body)
    stack: Any = SimpleNamespace(data=tmp_path, **calls(service))
    real, left = identities.write_secret, 1

    def broken(file: Path, text: str) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        real(file, text)

    def rotate(why: str, days: int = 30, *, dry_run: bool = False) -> Any:
        return asyncio.to_thread(signing.rotate, stack, why, timedelta(days=days), dry_run=dry_run)

    try:
        [old] = (await service.http.get("/v1/log")).json()["vkeys"]
        assert (await rotate("try", dry_run=True))["old"] == old
        for steps in (1, 1):  # the new key is written; then the old one beside it
            monkeypatch.setattr(signing, "write_secret", broken)
            left = steps
            with pytest.raises(KeyboardInterrupt):
                await rotate("quarterly")
        monkeypatch.setattr(signing, "write_secret", real)
        done = await rotate("another why", 5)
        assert (done["old"], done["from_size"]) == (old, before.size)
        with pytest.raises(SetupError, match="both sign until"):  # the first one was promised its days
            await rotate("too soon", dry_run=True)
        assert (await rotate("stolen", 0, dry_run=True))["old"] == done["new"]
        note = await signed(service, 10)
        log = (await service.http.get("/v1/log")).json()
        assert log["vkeys"] == [done["new"], old]
        assert set(note.verified([Verifier.parse(old)])) == {Verifier.parse(old)}
        _, lines, _ = await service.replay(type="ledger.key_rotated")
        [fact] = [line["leaf"]["event"]["data"] for line in lines]
        assert (fact["old"], fact["new"], fact["why"], fact["from_size"]) == (
            old,
            done["new"],
            "quarterly",
            before.size,
        )
        (folder / "ledger_signing_key").write_text("33" * 32)
        (folder / "ledger_signing_key_old").unlink()
        async with asyncio.timeout(10):  # signed with neither: nothing is signed, and the ledger says so
            await service.bench.publish(message(life(2)[0]))
            while (await service.http.get("/readyz")).status_code == 200:
                await asyncio.sleep(0.05)
        assert (await service.http.get("/v1/log")).json()["refused"]["code"] == "foreign"
        with pytest.raises(httpx2.HTTPStatusError, match="422"):
            await asyncio.to_thread(
                stack.post, "ledger", "/v1/log/keys", body(old, done["new"]), roles=["admin"], key="x"
            )
    finally:
        (folder / "ledger_signing_key").write_text(seed)
        (folder / "ledger_signing_key_old").unlink(missing_ok=True)


def body(old: str, new: str) -> bytes:
    return json.dumps({"old": old, "new": new, "from_size": 0, "until": "2027-01-01T00:00:00Z", "why": ""}).encode()


def calls(service: Service) -> dict[str, Any]:  # noqa: F811
    """What the command line asks of a running stack, asked of this service; from another thread."""
    loop = asyncio.get_running_loop()

    def get(_: str, path: str, params: dict[str, str], *, roles: list[str]) -> Any:
        return asyncio.run_coroutine_threadsafe(service.get(path, *roles, **params), loop).result(10).json()

    def post(_: str, path: str, content: bytes, *, roles: list[str], key: str) -> Any:
        headers = {**service.bearer(*roles), "Idempotency-Key": key, "Content-Type": "application/json"}
        answering = service.http.post(path, content=content, headers=headers)
        answer = asyncio.run_coroutine_threadsafe(answering, loop).result(10)
        answer.raise_for_status()
        return answer.json()

    return {"get": get, "post": post}
