"""The demo's receivers count what arrives, and nothing else."""

from __future__ import annotations

import asyncio
import json
import smtplib
from email.message import EmailMessage
from pathlib import Path

import httpx2

from deploy.demo.receivers import Receivers


async def test_a_post_is_counted_by_its_path_on_one_connection(tmp_path: Path) -> None:
    async with Receivers() as receivers:
        urls = _urls(receivers, tmp_path)
        async with httpx2.AsyncClient(trust_env=False) as client:
            for channel in ("wecom", "dingtalk", "wecom"):
                url = urls[channel].replace("json://", "http://")
                assert (await client.post(url, json={"message": "新派单"})).status_code == 200
        assert receivers.counts == {"wecom": 2, "dingtalk": 1}
        assert json.loads(receivers.last["wecom"]) == {"message": "新派单"}


async def test_an_unknown_path_is_not_counted(tmp_path: Path) -> None:
    async with Receivers() as receivers:
        url = _urls(receivers, tmp_path)["wecom"].replace("json://", "http://").replace("wecom", "elsewhere")
        async with httpx2.AsyncClient(trust_env=False) as client:
            assert (await client.post(url, json={})).status_code == 404
        assert not receivers.counts


async def test_a_mail_is_counted_per_recipient(tmp_path: Path) -> None:
    async with Receivers() as receivers:
        host, port = _urls(receivers, tmp_path)["mail"].removeprefix("mailto://").split("/")[0].split(":")
        mail = EmailMessage()
        mail["From"], mail["To"] = "paidan@demo.test", "m-1@demo.test, m-2@demo.test"
        mail.set_content("新派单")

        def send() -> None:
            with smtplib.SMTP(host, int(port)) as smtp:
                smtp.send_message(mail)

        await asyncio.to_thread(send)
        assert receivers.counts == {"mail": 2}


async def test_who_does_not_speak_http_is_hung_up_on(tmp_path: Path) -> None:
    async with Receivers() as receivers:
        address = _urls(receivers, tmp_path)["wecom"].removeprefix("json://").split("/")[0]
        host, port = address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HELO\r\n\r\n")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        assert not receivers.counts


def _urls(receivers: Receivers, folder: Path) -> dict[str, str]:
    file = folder / "channels.json"
    receivers.write_channels(file)
    assert file.stat().st_mode & 0o077 == 0
    urls: dict[str, str] = json.loads(file.read_text())
    return urls
