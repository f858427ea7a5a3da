"""Personal data on the bus: one key per contact, and not a byte of it readable."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import orjson

from deploy.servers import free_port
from services.intake.sealing import Keys
from tests.intake.conftest import World, keyed, until
from tests.intake.examples import LEAK, WUCHANG

CANARY = {
    "text": "水管漏水,门口密码 金丝雀八八零六",
    "location": {"address": "欧景苑 17 栋 金丝雀 2304"},
    "contact": {"name": "金丝雀张", "phone": "13987650001", "email": "canary@example.cn"},
}
TRACES = [trace.encode() for trace in ("13987650001", "金丝雀", "canary@", "2304", "\\u91d1")]


async def test_racing_requests_of_one_contact_end_with_one_key(world: World, intake: httpx2.AsyncClient) -> None:
    instances = [intake, await world.instance()]
    bodies = [{**LEAK, "text": f"水管漏水 {n}"} for n in range(20)]
    posts = [instances[n % 2].post("/v1/requests", json=body, headers=keyed(f"k-{n}")) for n, body in enumerate(bodies)]
    assert {response.status_code for response in await asyncio.gather(*posts)} == {201}

    kids = {orjson.loads(data)["data"]["sealed"]["kid"] for _, data in await world.submitted()}
    assert len(kids) == 1
    assert len(await world.messages("KEYS")) == 2  # the look-up and the key


async def test_what_is_sealed_can_be_opened_with_the_key_that_the_fact_names(
    world: World, intake: httpx2.AsyncClient
) -> None:
    await intake.post("/v1/requests", json=CANARY, headers=keyed("k-1"))
    [(_, data)] = await world.submitted()
    fact: dict[str, Any] = orjson.loads(data)["data"]
    secret = world.settings().secret
    keys = Keys(pepper=secret("contact_pepper").get_secret_value(), keks=world.settings().keks())
    kid, request_id = fact["sealed"]["kid"], fact["request_id"]
    wrapped = await world.admin.last(f"keys.{WUCHANG}.{kid}", stream="KEYS")
    sealed = await world.admin.last(f"sealed.{WUCHANG}.{kid}.{request_id}", stream="SEALED")
    assert wrapped is not None
    assert sealed is not None
    key = keys.unwrap(WUCHANG, kid, wrapped.data)

    assert key.open(request_id, sealed.data) == {
        "contact": CANARY["contact"],
        "address": "欧景苑 17 栋 金丝雀 2304",
        "text": CANARY["text"],
    }
    assert fact["sealed"]["commitment"] == key.commitment(request_id, sealed.data)
    assert fact["sealed"]["parts"] == ["contact", "text", "address"]


async def test_a_request_without_contact_has_a_key_of_its_own(world: World, intake: httpx2.AsyncClient) -> None:
    for key in ("k-1", "k-1", "k-2"):
        await intake.post("/v1/requests", json={**LEAK, "contact": None}, headers=keyed(key))

    kids = {orjson.loads(data)["data"]["sealed"]["kid"] for _, data in await world.submitted()}
    assert {subject for subject, _ in await world.messages("KEYS")} == {f"keys.{WUCHANG}.{kid}" for kid in kids}
    assert len(kids) == 2


async def test_a_request_with_nothing_personal_seals_nothing(world: World, intake: httpx2.AsyncClient) -> None:
    response = await intake.post(
        "/v1/requests", json={"service": "tree", "location": {"area": "oujing"}}, headers=keyed("k-1")
    )

    assert response.status_code == 201
    assert b"sealed" not in (await world.submitted())[0][1]
    assert await world.messages("KEYS") == []


async def test_a_canary_is_in_no_fact_no_stream_no_file_and_no_log_of_a_real_process(
    world: World, tmp_path: Path
) -> None:
    port = free_port()
    log = tmp_path / "intake.log"
    environment = {
        **os.environ,
        "NATS_URL": world.server.url,
        "PAIDAN_NATS_SEED_FILE": str(world.identities.seed_file("intake")),
        "PAIDAN_SECRETS_DIR": str(world.identities.secrets_dir("intake")),
        "PAIDAN_JWKS_FILE": str(world.identities.jwks_file),
        "PAIDAN_HTTP_PORT": str(port),
        "PAIDAN_LOG_FORMAT": "json",
        "PAIDAN_LOG_LEVEL": "debug",
    }
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: ASYNC220  # starting takes no time, and it is one
            [sys.executable, "-m", "services.intake"], env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:

            async def ready() -> bool:
                try:
                    return (await client.get("/readyz")).status_code == 200
                except httpx2.HTTPError:
                    return False

            await until(ready, 20)
            taken = await client.post("/v1/requests", json=CANARY, headers=keyed("k-1"))
            refused = [
                await client.post("/v1/requests", json={**CANARY, **change}, headers=keyed("k-2"))
                for change in (
                    {"location": {"address": "金丝雀 2304"}},
                    {"contact": {"phone": "金丝雀 13987650001 x" * 9}},
                    {"金丝雀": 1},
                    {"service": "no.such"},
                )
            ]
            assert taken.status_code == 201
            assert {response.status_code for response in refused} == {422}
            assert not any(trace in taken.content for trace in TRACES)
            metrics = (await client.get("/metrics")).content
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 15) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()

    said = log.read_bytes()
    assert b"request_accepted" in said
    assert b"request_refused" in said
    held = b""
    for stream in ("EVENTS", "SEALED", "KEYS"):
        held += b"".join(data for _, data in await world.messages(stream))
    on_disk = b"".join(file.read_bytes() for file in world.server.data.rglob("*") if file.is_file())
    for trace in TRACES:
        assert trace not in said + metrics + held
        assert trace not in on_disk


def test_it_refuses_to_start_without_secrets_in_one_line(tmp_path: Path, nats_server: Any, identities: Any) -> None:
    environment = {
        **os.environ,
        "NATS_URL": nats_server.url,
        "PAIDAN_NATS_SEED_FILE": str(identities.seed_file("intake")),
    }
    environment.pop("PAIDAN_SECRETS_DIR", None)
    ended = subprocess.run(
        [sys.executable, "-m", "services.intake"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "PAIDAN_SECRETS_DIR" in ended.stderr
