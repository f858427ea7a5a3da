"""Notify as it runs: a real bus, real receivers, real time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import httpx2

from deploy.identities import issue_token
from deploy.servers import free_port
from services.notify.channels import Cap
from services.notify.sending import UNDER_WAY_MAX
from shared.facts import DistrictSet, Name, NoticeFailed, NoticeHeld, NoticeQueued, NoticeSent
from shared.ids import derived_id
from tests.notify.conftest import Ground, MailReceiver, WebReceiver, until
from tests.notify.examples import LI, OFFICE, TASK, WANG, WUCHANG, accepted, offered


def soon(hours: int = 1) -> datetime:
    """An offer's end that is not reached in a test."""
    return datetime.now(UTC).replace(microsecond=0) + timedelta(hours=hours)


async def test_an_offer_reaches_each_member_by_their_channel(
    ground: Ground, web: WebReceiver, mail: MailReceiver
) -> None:
    await ground.contact(LI, channels=["wecom"])
    await ground.contact(WANG, channels=["mail"], language="en")
    await ground.notify({"wecom": web.url, "mail": mail.url})
    await ground.publish(offered(LI, WANG, "m-nobody", until=soon()))
    sent = [cast(NoticeSent, fact.fact) for fact in await ground.facts("notice.sent", 3)]
    assert Counter(fact.channel for fact in sent) == {"wecom": 1, "mail": 1, "console": 1}
    assert web.bodies[0]["title"] == "派单：路灯不亮"
    assert mail.taken[0][1]["Subject"] == "New task: Street light out"
    text = json.dumps(web.bodies, ensure_ascii=False) + mail.taken[0][1].as_string()
    assert "李小明" not in text
    assert "13900000000" not in text


async def test_the_facts_of_a_message_hang_together(ground: Ground) -> None:
    await ground.notify()
    cause = offered(LI, until=soon())
    await ground.publish(cause)
    (sent,) = await ground.facts("notice.sent", 1)
    (queued,) = await ground.facts("notice.queued", 1)
    assert queued.cause == cause.id
    assert sent.cause == queued.id
    assert {sent.case, queued.case} == {cause.case}
    assert {sent.districts, queued.districts} == {WUCHANG}


async def test_a_failure_is_tried_again_after_one_and_two_seconds(ground: Ground, web: WebReceiver) -> None:
    web.statuses = [500, 500]
    await ground.contact(LI, channels=["wecom"])
    await ground.notify({"wecom": web.url})
    await ground.publish(offered(LI, until=soon()))
    (sent,) = await ground.facts("notice.sent", 1)
    failed = [cast(NoticeFailed, fact.fact) for fact in await ground.facts("notice.failed", 2)]
    assert cast(NoticeSent, sent.fact).attempt == 3
    assert [(fact.attempt, fact.code, fact.retry_at is not None) for fact in failed] == [
        (1, "refused", True),
        (2, "refused", True),
    ]
    first, second, third = (at for _, _, at in web.taken)
    assert timedelta(seconds=0.9) < second - first < timedelta(seconds=1.9)
    assert timedelta(seconds=1.9) < third - second < timedelta(seconds=3.5)


async def test_the_second_attempt_takes_the_members_next_channel(ground: Ground, web: WebReceiver) -> None:
    await ground.contact(LI, channels=["dingtalk", "wecom"])
    await ground.notify({"wecom": web.url})
    await ground.publish(offered(LI, until=soon()))
    (sent,) = await ground.facts("notice.sent", 1)
    (failed,) = await ground.facts("notice.failed", 1)
    assert cast(NoticeFailed, failed.fact).code == "no_channel"
    assert (cast(NoticeSent, sent.fact).channel, cast(NoticeSent, sent.fact).attempt) == ("wecom", 2)


async def test_quiet_hours_hold_a_message_and_end_in_one_digest(ground: Ground, web: WebReceiver) -> None:
    wake = datetime(2026, 11, 22, 23, 0, tzinfo=UTC)  # 07:00 in Wuhan
    shift = wake - timedelta(seconds=3) - datetime.now(UTC)
    await ground.contact(LI, channels=["wecom"], quiet=[22 * 60, 7 * 60])
    await ground.notify({"wecom": web.url}, clock=lambda: datetime.now(UTC) + shift)
    for n in range(3):
        await ground.publish(offered(LI, task=derived_id("task", n), n=n, at=wake, until=wake + timedelta(hours=1)))
    held = [cast(NoticeHeld, fact.fact) for fact in await ground.facts("notice.held", 3)]
    assert {fact.until for fact in held} == {wake}
    assert web.taken == []
    sent = await ground.facts("notice.sent", 3)
    assert {cast(NoticeSent, fact.fact).attempt for fact in sent} == {1}
    assert [body["title"] for body in web.bodies] == ["免打扰期间的 3 条消息"]
    assert web.taken[0][2] + shift >= wake


async def test_the_districts_quiet_hours_hold_for_those_who_have_none_of_their_own(
    ground: Ground, web: WebReceiver
) -> None:
    from tests.notify.examples import NIGHT, POLICY

    shift = NIGHT - datetime.now(UTC)
    await ground.register(POLICY)
    await ground.contact(LI, channels=["wecom"])
    await ground.notify({"wecom": web.url}, clock=lambda: datetime.now(UTC) + shift)
    await ground.publish(offered(LI, at=NIGHT, until=NIGHT + timedelta(hours=12)))
    (held,) = await ground.facts("notice.held", 1)
    assert cast(NoticeHeld, held.fact).until == datetime(2026, 11, 22, 23, 0, tzinfo=UTC)


async def test_urgency_breaks_through_quiet_hours(ground: Ground, web: WebReceiver) -> None:
    await ground.contact(LI, channels=["wecom"], quiet=[0, 1440])
    await ground.notify({"wecom": web.url})
    await ground.publish(offered(LI, urgency=2, until=soon()))
    await ground.facts("notice.sent", 1)
    assert web.bodies[0]["title"].startswith("【紧急】")


async def test_a_late_offer_is_not_sent(ground: Ground, web: WebReceiver) -> None:
    await ground.contact(LI, channels=["wecom"])
    await ground.notify({"wecom": web.url})
    await ground.publish(offered(LI, until=datetime.now(UTC) - timedelta(seconds=1)))
    (failed,) = await ground.facts("notice.failed", 1)
    assert (cast(NoticeFailed, failed.fact).code, cast(NoticeFailed, failed.fact).retry_at) == ("late", None)
    assert web.taken == []


async def test_an_offer_held_past_its_end_is_late(ground: Ground, web: WebReceiver) -> None:
    wake = datetime(2026, 11, 22, 23, 0, tzinfo=UTC)
    shift = wake - timedelta(seconds=1.5) - datetime.now(UTC)
    await ground.contact(LI, channels=["wecom"], quiet=[22 * 60, 7 * 60])
    await ground.notify({"wecom": web.url}, clock=lambda: datetime.now(UTC) + shift)
    await ground.publish(offered(LI, at=wake, until=wake - timedelta(milliseconds=1)))
    await ground.facts("notice.held", 1)
    (failed,) = await ground.facts("notice.failed", 1)
    assert cast(NoticeFailed, failed.fact).code == "late"
    assert web.taken == []


async def test_what_was_overtaken_while_it_waited_for_the_channel_is_not_sent(ground: Ground, web: WebReceiver) -> None:
    for member in (LI, WANG):
        await ground.contact(member, channels=["webhook"])
    await ground.notify({"webhook": web.url}, caps={"webhook": Cap(1, 3)})
    await ground.publish(offered(LI, WANG, until=soon()))
    (sent,) = await ground.facts("notice.sent", 1)
    notices = {fact.id: cast(NoticeQueued, fact.fact).recipient for fact in await ground.facts("notice.queued", 2)}
    told = notices[cast(NoticeSent, sent.fact).notice_id]
    await ground.publish(accepted(told))
    (failed,) = await ground.facts("notice.failed", 1)
    assert cast(NoticeFailed, failed.fact).code == "overtaken"
    await asyncio.sleep(3.2)
    assert len(web.taken) == 1


async def test_a_channel_gets_no_more_than_its_cap_and_urgent_messages_first(ground: Ground, web: WebReceiver) -> None:
    for member in (LI, WANG):
        await ground.contact(member, channels=["webhook"])
    await ground.notify({"webhook": web.url}, caps={"webhook": Cap(4, 4)})
    calm = [offered(LI, task=derived_id("task", n), n=n, until=soon()) for n in range(4)]
    await ground.publish(*calm, offered(WANG, urgency=2, n=9, until=soon()))
    await ground.facts("notice.sent", 5)
    times = [at for _, _, at in web.taken]
    assert times[-1] - times[0] > timedelta(seconds=4)
    assert "/m-wang" in [path for path, _, _ in web.taken][:2]


async def test_of_two_instances_one_sends_and_the_other_takes_over(ground: Ground, web: WebReceiver) -> None:
    await ground.contact(LI, channels=["wecom"])
    first = await ground.notify({"wecom": web.url}, instance="notify-1")
    await until(lambda: first.open_now[WUCHANG].turns.leading)
    second = await ground.notify({"wecom": web.url}, instance="notify-2")
    await ground.publish(*(offered(LI, task=derived_id("task", n), n=n, until=soon()) for n in range(30)))
    await ground.facts("notice.sent", 30)
    assert len(web.taken) == 30
    await first.close()
    await ground.publish(*(offered(LI, task=derived_id("task", n), n=n, until=soon()) for n in range(30, 60)))
    await ground.facts("notice.sent", 60)
    assert len(web.taken) == 60
    assert second.open_now[WUCHANG].turns.leading


async def test_every_state_is_the_fold_of_the_facts(ground: Ground, web: WebReceiver) -> None:
    from services.notify.rules import RULES
    from shared.turns import recover

    web.statuses = [500]
    await ground.contact(LI, channels=["wecom"])
    offices = await ground.notify({"wecom": web.url})
    await ground.publish(offered(LI, WANG, until=soon()))
    await ground.facts("notice.failed", 1)
    await ground.facts("notice.sent", 2)
    await ground.publish(accepted(WANG))
    await ground.facts("notice.sent", 3)
    await until(lambda: not offices.open_now[WUCHANG].turns.state.notices)
    state = offices.open_now[WUCHANG].turns.state
    assert (await recover(ground.admin, RULES, WUCHANG)).state == state
    assert state.tasks[TASK].holder == WANG


async def test_a_district_is_served_once_the_register_names_it(ground: Ground) -> None:
    offices = await ground.notify(districts=None)
    await until(lambda: WUCHANG in offices.open_now)
    await ground.register(DistrictSet(district="420107", title=Name(zh="青山区", en="Qingshan"), office=OFFICE.office))
    await until(lambda: set(offices.open_now) == {WUCHANG, "420107"})
    assert not offices.missing()


async def test_a_contact_nobody_can_read_is_no_obstacle(ground: Ground) -> None:
    await ground.admin.put(f"$KV.CONTACTS.{WUCHANG}.{LI}", b"{not json")
    await ground.contact(WANG, channels=[])
    await ground.notify()
    await ground.publish(offered(LI, WANG, until=soon()))
    sent = await ground.facts("notice.sent", 2)
    assert {cast(NoticeSent, fact.fact).channel for fact in sent} == {"console"}


async def test_broken_bytes_on_the_bus_are_set_aside(ground: Ground) -> None:
    from shared.bus import Message

    await ground.notify()
    subject = offered(LI).subject
    await ground.admin.commit(
        [Message(subject, b"{broken"), Message(f"evt.{WUCHANG}.dispatch.x1.task.accepted", b"{}")]
    )
    await ground.publish(offered(LI, until=soon()))
    await ground.facts("notice.sent", 1)
    assert await ground.count("turn.input_refused") == 2


async def test_the_bus_may_go_and_come_back(ground: Ground, web: WebReceiver) -> None:
    await ground.contact(LI, channels=["wecom"])
    await ground.notify({"wecom": web.url})
    await ground.publish(offered(LI, until=soon()))
    await ground.facts("notice.sent", 1)
    await asyncio.to_thread(ground.server.kill)
    await asyncio.to_thread(ground.server.start)
    await until(lambda: ground.admin.connected)
    await ground.publish(offered(LI, task=derived_id("task", 2), n=2, until=soon()))
    await ground.facts("notice.sent", 2, within_s=30)
    assert len(web.taken) == 2


class Process:
    """`python -m services.notify`, as an operator starts it."""

    def __init__(self, ground: Ground, channels: dict[str, str], folder: Path) -> None:
        file = folder / "channels.json"
        file.write_text(json.dumps(channels))
        self.port = free_port()
        self.log = folder / "notify.log"
        self._environment = {
            **os.environ,
            "NATS_URL": ground.server.url,
            "PAIDAN_NATS_SEED_FILE": str(ground.identities.seed_file("notify")),
            "PAIDAN_JWKS_FILE": str(ground.identities.jwks_file),
            "PAIDAN_CHANNELS_FILE": str(file),
            "PAIDAN_HTTP_PORT": str(self.port),
            "PAIDAN_LOG_FORMAT": "json",
            "PAIDAN_CAPS": '{"wecom": [10000, 1]}',
        }
        self.start()

    def start(self) -> None:
        """Once more."""
        command = [sys.executable, "-m", "services.notify"]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(command, env=self._environment, stdout=out, stderr=out)

    def end(self, number: signal.Signals) -> int:
        """Its exit code."""
        self.process.send_signal(number)
        return self.process.wait(25)

    async def get(self, path: str, token: str = "") -> httpx2.Response:
        """From its HTTP side."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with httpx2.AsyncClient(trust_env=False) as client:
            return await client.get(f"http://127.0.0.1:{self.port}{path}", headers=headers)

    async def ready(self) -> None:
        """Wait until it says so."""
        async with asyncio.timeout(20):
            while True:
                try:
                    if (await self.get("/readyz")).status_code == 200:
                        return
                except httpx2.HTTPError:
                    pass
                await asyncio.sleep(0.05)


async def test_a_kill_between_sending_and_the_commit_sends_once_more_at_most(
    ground: Ground, web: WebReceiver, tmp_path: Path
) -> None:
    await ground.contact(LI, channels=["wecom"])
    process = Process(ground, {"wecom": web.url}, tmp_path)
    web.gate.clear()  # the receiver has it, the sender does not know
    await ground.publish(*(offered(LI, task=derived_id("task", n), n=n, until=soon()) for n in range(3)))
    await until(lambda: len(web.taken) == 3, within_s=30)
    process.end(signal.SIGKILL)
    web.gate.set()
    assert await ground.count("notice.sent") == 0
    process.start()
    await ground.facts("notice.sent", 3, within_s=30)
    assert len(web.taken) == 6
    assert process.end(signal.SIGTERM) == 0
    assert await ground.count("notice.sent") == await ground.count("notice.queued") == 3


async def test_kills_at_any_moment_lose_nothing_and_send_once_more_each_at_most(
    ground: Ground, web: WebReceiver, tmp_path: Path
) -> None:
    offers, kills = 400, 3
    await ground.contact(LI, channels=["wecom"])
    process = Process(ground, {"wecom": web.url}, tmp_path)
    await ground.publish(*(offered(LI, task=derived_id("task", n), n=n, until=soon()) for n in range(offers)))
    for kill in range(1, kills + 1):
        await until(lambda kill=kill: len(web.taken) >= kill * 80, within_s=30)  # type: ignore[misc]
        process.end(signal.SIGKILL)
        process.start()
    sent = await ground.facts("notice.sent", offers, within_s=60)
    assert process.end(signal.SIGTERM) == 0
    assert len({cast(NoticeSent, fact.fact).notice_id for fact in sent}) == len(sent) == offers
    assert await ground.count("notice.queued") == await ground.count("notice.sent") == offers
    links = Counter(body["message"].rsplit("/", 1)[1] for body in web.bodies)
    assert len(links) == offers
    assert max(links.values()) <= 1 + kills
    assert len(web.taken) <= offers + kills * UNDER_WAY_MAX * 2


async def test_sigterm_lets_what_is_under_way_end_and_commits_it(
    ground: Ground, web: WebReceiver, tmp_path: Path
) -> None:
    await ground.contact(LI, channels=["wecom"])
    process = Process(ground, {"wecom": web.url}, tmp_path)
    web.gate.clear()
    await ground.publish(offered(LI, until=soon()))
    await until(lambda: len(web.taken) == 1, within_s=30)
    ending = asyncio.create_task(asyncio.to_thread(process.end, signal.SIGTERM))
    await asyncio.sleep(0.5)
    web.gate.set()
    assert await ending == 0
    assert await ground.count("notice.sent") == 1


async def test_staff_see_how_many_messages_went_out(ground: Ground, web: WebReceiver, tmp_path: Path) -> None:
    process = Process(ground, {"wecom": web.url}, tmp_path)
    await ground.contact(LI, channels=["wecom"])
    await process.ready()
    await ground.publish(offered(LI, WANG, until=soon()))
    await ground.facts("notice.sent", 2, within_s=30)
    staff = issue_token(ground.identities, "staff-1", WUCHANG, ["dispatcher"])
    await asyncio.sleep(0.1)
    counts = (await process.get(f"/v1/notices?district={WUCHANG}", staff)).json()
    assert (await process.get("/v1/notices", staff)).json() == counts  # the token's own
    assert counts == {
        "district": WUCHANG, "queued": 2, "waiting": 0, "held": 0, "retrying": 0, "sent": {"console": 1, "wecom": 1}, "failed": {},
    }  # fmt: skip
    codes = {}
    member = issue_token(ground.identities, LI, WUCHANG, ["member"])
    elsewhere = issue_token(ground.identities, "staff-2", "420107", ["dispatcher"])
    everywhere = issue_token(ground.identities, "auditor-1", "*", ["auditor"])
    for name, token, district in (
        ("nobody", "", WUCHANG),
        ("member", member, WUCHANG),
        ("elsewhere", elsewhere, WUCHANG),
        ("unknown", everywhere, "999999"),
        ("malformed", everywhere, "wuchang"),
        ("none in particular", everywhere, ""),
    ):
        asked = f"?district={district}" if district else ""
        codes[name] = (await process.get(f"/v1/notices{asked}", token)).status_code
    assert codes == {
        "nobody": 401,
        "member": 403,
        "elsewhere": 403,
        "unknown": 404,
        "malformed": 422,
        "none in particular": 422,
    }
    metrics = (await process.get("/metrics")).text
    assert f'paidan_notices_total{{channel="wecom",code="",district="{WUCHANG}",result="sent"}} 1.0' in metrics
    assert process.end(signal.SIGTERM) == 0
    log = process.log.read_text()
    assert f'"recipient": "{WANG}"' in log
    assert str(web.port) not in log
    assert "李小明" not in log


async def test_what_cannot_start_says_why_in_one_line(ground: Ground, tmp_path: Path) -> None:
    process = Process(ground, {"WeCom": "json://secret"}, tmp_path)
    assert process.process.wait(20) == 1
    assert process.log.read_text() == "notify: 'WeCom' cannot be a channel's name\n"
