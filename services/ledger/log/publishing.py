"""
What the log publishes: checkpoints, tiles and proofs at the static paths of C2SP tlog-tiles, for whoever asks; entries and rejected
messages for auditors of everything.

Tiles and proofs are hashes and say nothing of anybody; the entries behind them hold every office's facts.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Path, Query, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from starlette.responses import PlainTextResponse

from services.ledger.acting import Acts
from services.ledger.asking import Everything, Key, Registrar
from services.ledger.log import tree
from services.ledger.log.checkpoints import Signer
from services.ledger.log.leaves import CONFLICT, REJECT
from services.ledger.log.notes import Checkpoint, Note, NoteError, Signature, Verifier
from services.ledger.log.tree import TILE_WIDTH, Tile
from services.ledger.register.register_api import Sentence
from services.ledger.replay import Cursors
from services.ledger.store import Selection, Signed, Store
from shared.access import public
from shared.envelope import canonical
from shared.errors import RefusedError
from shared.facts import HUB, LedgerKeyRotated, VerifierKey
from shared.telemetry import logger
from shared.web import problems

FOR_EVER = {"Cache-Control": "public, max-age=31536000, immutable"}
NEWEST = {"Cache-Control": "no-cache"}
PROOF = "c2sp.org/tlog-proof@v1"
PAGE_MAX = 500
Index = Annotated[int, Path(ge=0, lt=2**53)]
Size = Annotated[
    int | None, Query(ge=1, lt=2**53, description="检查点的大小,缺省为最新 / of a checkpoint; else the newest")
]


class Rotation(BaseModel):
    """A new key and the one before; both sign until then. What a repeat says must be the same."""

    model_config = ConfigDict(extra="forbid")

    old: VerifierKey
    new: VerifierKey
    from_size: Annotated[int, Field(ge=0, lt=2**53)]
    until: AwareDatetime
    why: Sentence


def add_routes(app: FastAPI, store: Store, signer: Signer, cursors: Cursors, acts: Acts) -> None:
    """Every route of this module."""
    _give_entries(app, store, signer)  # before the tiles, whose path theirs would match
    _publish(app, store, signer)
    _rotate(app, signer, acts)
    _list_rejects(app, store, cursors)


async def published(store: Store, signer: Signer, size: int | None = None) -> tuple[Signed, Note]:
    """
    The checkpoint of this size, or the newest that enough have cosigned, with the lines of everybody who has.

    Raises:
        RefusedError: `not_found`.
    """
    if size is None and signer.witnesses and (served := signer.witnesses.served()):
        size = Checkpoint.parse(served.body).size
    signed = await store.checkpoint(size)
    if signed is None or size not in (None, signed.size):
        raise RefusedError("not_found", what="checkpoint" if size is None else f"checkpoint {size}")
    return signed, Note.parse(signed.note).signed(map(Signature.parse, await store.cosignatures(signed.size)))


async def proof(store: Store, signer: Signer, index: int, size: int | None = None) -> str:
    """
    That a leaf lies in the log, in the format of C2SP tlog-proof: index, path, and the checkpoint that they lead to.

    Raises:
        RefusedError: `not_found`: no such checkpoint, or it is smaller.
    """
    signed, note = await published(store, signer, size)
    if index >= signed.size:
        raise RefusedError("not_found", what=f"leaf {index} of {signed.size}")
    try:
        hashes = await tree.inclusion(signer.tree.tile, index, signed.size)
    except LookupError:  # another instance has signed what this one has not read yet
        raise RefusedError("unavailable", retry_after=2) from None
    return "".join(f"{line}\n" for line in (PROOF, f"index {index}", *map(_base64, hashes), "")) + note.text


def in_numbers(signer: Signer) -> dict[str, Any]:
    """How far the log is signed as far as this instance knows, and what keeps it from being signed further."""
    keyed = bool(_verifiers(signer, signer.now()))
    refused = {"code": signer.refusal.code, "why": str(signer.refusal)} if signer.refusal else None
    return {"size": signer.size, "signs": keyed and refused is None, "refused": refused}


def _publish(app: FastAPI, store: Store, signer: Signer) -> None:
    missing = problems("not_found", "unavailable")

    @app.get(
        "/v1/log",
        tags=["log"],
        summary="账本的名称、公钥与见证策略 / the log's name, keys and policy",
        dependencies=[public],
    )
    async def the_log() -> Response:
        newest = await store.checkpoint()
        vkeys = [verifier.text for verifier in _verifiers(signer, signer.now())]
        return _json(
            {
                "origin": signer.keys.origin,
                "vkeys": vkeys,
                "checkpoint": newest and {"size": newest.size, "at": newest.at.isoformat()},
                "policy": signer.policy or "".join([*(f"log {vkey}\n" for vkey in vkeys), "quorum none\n"]),
                **in_numbers(signer),
            }
        )

    @app.get(
        "/checkpoint",
        tags=["log"],
        summary="最新检查点(签名便笺) / the newest checkpoint, a signed note",
        response_class=PlainTextResponse,
        responses=missing,
        dependencies=[public],
    )
    async def checkpoint() -> Response:
        _, note = await published(store, signer)
        return PlainTextResponse(note.text, headers=NEWEST)

    @app.get(
        "/tile/{level}/{number:path}",
        tags=["log"],
        summary="哈希瓦片 / a tile of hashes",
        response_class=Response,
        responses=missing,
        dependencies=[public],
    )
    async def tile(level: str, number: str) -> Response:
        wanted = _tile(f"tile/{level}/{number}")
        try:
            hashes = await signer.tree.tile(wanted)
        except LookupError:
            raise RefusedError("not_found", what=wanted.path) from None
        return _bytes(hashes, FOR_EVER)

    @app.get(
        "/proof/{index}.tlog-proof",
        tags=["log"],
        summary="一条记录在账本中的证明 / the proof that a leaf is in the log",
        response_class=PlainTextResponse,
        responses=missing,
        dependencies=[public],
    )
    async def inclusion(index: Index, size: Size = None) -> Response:
        return PlainTextResponse(await proof(store, signer, index, size), headers=NEWEST)

    @app.get(
        "/consistency",
        tags=["log"],
        summary="两个检查点一致的证明 / the proof that one checkpoint begins with another",
        responses=missing,
        dependencies=[public],
    )
    async def consistency(
        old: Annotated[int, Query(alias="from", ge=0, lt=2**53)],
        new: Annotated[int | None, Query(alias="to", ge=0, lt=2**53)] = None,
    ) -> Response:
        signed, _ = await published(store, signer, new)
        if old > signed.size:
            raise RefusedError("not_found", what=f"{old} of {signed.size}")
        hashes = await signer.tree.prove(old, signed.size)
        return _json({"from": old, "to": signed.size, "hashes": [*map(_base64, hashes)]}, NEWEST)


def _give_entries(app: FastAPI, store: Store, signer: Signer) -> None:
    @app.get(
        "/tile/entries/{number:path}",
        tags=["log"],
        summary="记录包,仅全域审计 / a bundle of entries, for auditors of everything",
        response_class=Response,
        responses=problems("unauthenticated", "forbidden", "everywhere_only", "not_found", "unavailable"),
    )
    async def entries(_: Everything, number: str) -> Response:
        wanted = _tile(f"tile/0/{number}")
        since = wanted.number * TILE_WIDTH
        found = []
        if wanted.leaves <= signer.tree.size:
            found = await store.read(Selection(), since, since + wanted.width, wanted.width)
        if len(found) < wanted.width:
            raise RefusedError("not_found", what=f"entries/{number}")
        bundle = b"".join(len(leaf).to_bytes(2, "big") + leaf for _, leaf in found)
        return _bytes(bundle, {"Cache-Control": "private, max-age=31536000, immutable"})


def _rotate(app: FastAPI, signer: Signer, acts: Acts) -> None:
    @app.post(
        "/v1/log/keys",
        status_code=201,
        tags=["log"],
        summary="记录签名密钥更换 / record that the log signs with a new key",
        responses=problems(
            *("unauthenticated", "forbidden", "everywhere_only", "key_missing", "key_reused", "invalid", "unavailable")
        ),
    )
    async def rotate(caller: Registrar, body: Rotation, key: Key = None) -> Response:
        if key is None:
            raise RefusedError("key_missing", field="Idempotency-Key")
        if body.old not in [verifier.text for verifier in _verifiers(signer)]:
            raise RefusedError("invalid", field="old", why="不是本账本的密钥", why_en="not this log's key")
        try:
            new, old = Verifier.parse(body.new), Verifier.parse(body.old)
        except NoteError as why:
            raise RefusedError("invalid", field="new", why="公钥有误", why_en=str(why)) from None
        if new == old or (new.name, new.type) != (old.name, old.type):
            raise RefusedError("invalid", field="new", why="须为同名的另一密钥", why_en="another key of the same name")
        fact = LedgerKeyRotated(**body.model_dump())
        answer = await acts.record(fact, district=HUB, by=caller, key=key)
        logger().warning("key_rotated", by=caller.actor, new=body.new, until=body.until.isoformat())
        return Response(canonical(answer), 201, media_type="application/json")


def _list_rejects(app: FastAPI, store: Store, cursors: Cursors) -> None:
    barred = problems("unauthenticated", "forbidden", "everywhere_only")

    @app.get(
        "/v1/rejects",
        tags=["log"],
        summary="未被接受的消息,旧者在前 / messages that are no facts, oldest first",
        responses={**barred, **problems("bad_cursor", "unavailable")},
    )
    async def rejects(
        _: Everything,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 100,
        cursor: Annotated[str | None, Query(max_length=200)] = None,
    ) -> Response:
        since = cursors.open("rejects", cursor)[0] if cursor else 0
        found = await store.read(Selection(kinds=(CONFLICT, REJECT)), since, 2**53, limit + 1)
        leaves = [orjson.loads(leaf) for _, leaf in found]
        sizes = await store.raw_sizes([leaf["digest"] for leaf in leaves])
        rows = [
            {
                "index": leaf["index"],
                "sequence": leaf["src"]["seq"],
                "recorded": leaf["recorded"],
                "kind": leaf["kind"],
                "subject": leaf["subject"],
                "reason": leaf.get("reason", "id"),
                "digest": leaf["digest"],
                "size": sizes.get(leaf["digest"]),
            }
            for leaf in leaves
        ]
        following = cursors.seal("rejects", rows[limit]["index"]) if len(rows) > limit else None
        return _json({"rejects": rows[:limit], "next": following})

    @app.get(
        "/v1/rejects/{digest}",
        tags=["log"],
        summary="未被接受的消息原文 / its bytes as they came",
        response_class=Response,
        responses={**barred, **problems("not_found", "unavailable")},
    )
    async def raw(_: Everything, digest: str) -> Response:
        if (found := await store.raw(digest)) is None:
            raise RefusedError("not_found", what=digest[:64])
        return _bytes(found, {"Content-Disposition": "attachment"})


def _verifiers(signer: Signer, at: datetime | None = None) -> list[Verifier]:
    """The log's keys, or those that sign at this time; none where they cannot be read, which the signer says itself."""
    try:
        return signer.keys.verifiers if at is None else signer.keys.published(at)
    except NoteError:
        return []


def _tile(path: str) -> Tile:
    try:
        return Tile.parse(path)
    except ValueError:
        raise RefusedError("not_found", what=path[:80]) from None


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _bytes(data: bytes, headers: Mapping[str, str]) -> Response:
    return Response(data, media_type="application/octet-stream", headers=dict(headers))


def _json(content: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(canonical(content), media_type="application/json", headers=dict(headers or {}))
