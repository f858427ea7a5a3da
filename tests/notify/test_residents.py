"""What residents are told, and how they are reached."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from services.notify import model
from services.notify.channels import Cap
from services.notify.decide import Outcome, supervisor
from services.notify.model import TO_RESIDENTS, UNREACHABLE
from services.notify.wording import LANGUAGES, Wording
from shared.bus import Bus, Request
from shared.envelope import Envelope
from shared.errors import UnavailableError
from shared.facts import (
    ConferralEnded,
    ConferralOpened,
    ConferralReceived,
    ConferralSettled,
    Due,
    Fact,
    HandoverReceived,
    HandoverRefused,
    HandoverReturned,
    HandoverSettled,
    HelpAnswered,
    HelpLapsed,
    HelpReceived,
    HelpSeated,
    HelpSettled,
    Language,
    MemberEnrolled,
    NoticeFailed,
    NoticeHeld,
    NoticeQueued,
    NoticeSent,
    RequestSubmitted,
    Sealed,
    TaskDone,
    TaskHandedOver,
    TaskOpened,
)
from shared.ids import derived_id
from tests.notify.conftest import FREELY, Ground, MailReceiver, WebReceiver, until
from tests.notify.examples import (
    LI,
    NIGHT,
    NOON,
    POLICY,
    REQUEST,
    TASK,
    WANG,
    WUCHANG,
    accepted,
    closed,
    fact_of_the_desk,
    given,
    offered,
    report,
    told,
    when,
)

QINGSHAN = "420107"
RESIDENT = f"r-{REQUEST}"
DUE = Due(**dict.fromkeys(("sign", "contact", "handle", "life"), NOON + timedelta(days=1)))
PHONE, EMAIL, NAME = "199 0000 1009", "chang@resident.example", "常桂芳"
WORDING = Wording.open("https://staff.example.org", resident_url="https://paidan.example.org/track")


def submitted(*parts: str, at: datetime = NOON, urgency: int = 0) -> Envelope:
    """A request of somebody who left this."""
    sealed = Sealed.model_validate({"kid": "ab", "commitment": "cd", "parts": parts}) if parts else None
    fact = RequestSubmitted(
        request_id=REQUEST, fingerprint="ab", tracking_hash="cd", channel="app", item="light.out", item_rule="given",
        urgency=urgency, urgency_rule="none", area="xinxiang-7k", area_rule="code", located_in=QINGSHAN, due=DUE, sealed=sealed,
    )  # fmt: skip
    envelope = fact_of_the_desk(fact, at=at)
    return Envelope(envelope.id, WUCHANG, "xinxiang-7k", at, fact, envelope.districts, case=REQUEST)


def opened(round: int = 1, *, task: str = TASK, at: datetime = NOON, urgency: int = 0) -> Envelope:
    """The office takes it in."""
    fact = TaskOpened(
        task_id=task, request_id=REQUEST, round=round, area="xinxiang-7k", item="light.out", urgency=urgency, effort=2, due=DUE
    )  # fmt: skip
    return fact_of_the_desk(fact, at=at, n=round)


def done(member: str = LI, *, at: datetime = NOON) -> Envelope:
    """It is done."""
    return fact_of_the_desk(TaskDone(task_id=TASK, member_id=member, outcome="solved"), at=at)


def handed_over(giver: str, receiver: str) -> Envelope:
    """The moment at which it changes its office."""
    fact = TaskHandedOver(
        task_id=TASK, request_id=REQUEST, round=1, to=receiver, by=derived_id("by"), new_task_id=NEW_TASK, item="light.out",
        urgency=0, due=DUE, grant=True,
    )  # fmt: skip
    envelope = fact_of_the_desk(fact)
    return Envelope(envelope.id, giver, "xinxiang-7k", NOON, fact, "420106,420107", case=REQUEST)


NEW_TASK = derived_id("new task")
ENROLLED = fact_of_the_desk(MemberEnrolled(member_id=LI, kind="volunteer", areas=("xinxiang-7k",), capacity=4))


# --- who is told ------------------------------------------------------------------------------------------------------


def test_a_resident_who_left_a_contact_hears_of_each_step() -> None:
    post = given()
    heard = []
    for step in (submitted("contact", "text"), opened(), offered(LI), accepted(LI), done(), closed("rated")):
        post, facts = when(post, step)
        heard += [(who, what) for who, what in told(facts) if who == RESIDENT]
    assert heard == [(RESIDENT, "received"), (RESIDENT, "underway"), (RESIDENT, "finished")]


@pytest.mark.parametrize("parts", [(), ("text", "address")])
def test_who_left_no_contact_is_told_nothing(parts: tuple[str, ...]) -> None:
    _, facts = when(given(submitted(*parts), opened()), accepted(LI), done(), closed("quiet"))
    assert told(facts) == []


@pytest.mark.parametrize(("reason", "template"), [("withdrawn", "cancelled"), ("quiet", "ended")])
def test_a_resident_hears_that_it_is_over(reason: str, template: str) -> None:
    _, facts = when(given(submitted("contact"), opened()), closed(reason))
    assert told(facts) == [(RESIDENT, template)]


@pytest.mark.parametrize("reason", ["rated", "reopened"])
def test_who_has_just_said_something_is_not_told_so(reason: str) -> None:
    _, facts = when(given(submitted("contact"), opened()), closed(reason))
    assert told(facts) == []


def test_a_new_round_is_received_again() -> None:
    again = opened(2, task=derived_id("task", 2))
    _, facts = when(given(submitted("contact"), opened(), closed("reopened")), again)
    assert told(facts) == [(RESIDENT, "received")]


def test_the_receiving_office_says_that_it_is_responsible_now_and_goes_on_telling() -> None:
    post = given(handed_over(QINGSHAN, WUCHANG))
    post, facts = when(post, opened(task=NEW_TASK))
    assert told(facts) == [(RESIDENT, "moved")]
    _, facts = when(post, accepted(LI, task=NEW_TASK))
    assert told(facts) == [(RESIDENT, "underway")]


def test_members_of_the_giving_office_hear_that_it_is_over_and_the_resident_hears_nothing_of_it() -> None:
    post = given(submitted("contact"), opened(), offered(LI, WANG), accepted(LI))
    after, facts = when(post, handed_over(WUCHANG, QINGSHAN))
    assert told(facts) == [(LI, "given_away")]  # WANG was told already that it is taken
    assert after.task(TASK).closed


def test_a_hand_over_between_others_is_none_of_our_business() -> None:
    before = given(submitted("contact"), opened())
    after, facts = when(before, handed_over(QINGSHAN, "420111"))
    assert (after, facts) == (before, [])


def test_urgent_matters_are_urgent_for_residents_too() -> None:
    _, (queued,) = when(given(submitted("contact", urgency=3)), opened(urgency=3))
    assert cast(Any, queued.fact).urgent


def test_who_cannot_be_reached_is_told_nothing_more() -> None:
    post, _ = when(given(submitted("contact")), opened())
    (notice,) = post.notices.values()
    post, (failed,) = report(post, Outcome(notice.id, 1, "dropped", code=UNREACHABLE))
    assert cast(NoticeFailed, failed.fact).retry_at is None
    assert when(post, accepted(LI), done())[1] == []


def test_the_facts_of_a_resident_name_nobody_and_stay_in_the_office() -> None:
    _, (queued,) = when(given(submitted("contact")), opened())
    assert (queued.districts, queued.case) == (WUCHANG, REQUEST)


def test_a_snapshot_knows_who_asked_and_of_what_kind_members_are() -> None:
    import orjson

    from shared.envelope import OPTIONS
    from shared.facts import plain

    post = given(submitted("contact"), ENROLLED, opened(2, task=NEW_TASK), offered(LI))
    data = orjson.dumps(model.dump(post), default=plain, option=OPTIONS | orjson.OPT_NON_STR_KEYS)
    assert post.kinds
    assert post.replies
    assert model.load(orjson.loads(data)) == post


# --- supervisors ------------------------------------------------------------------------------------------------------


ASKED: dict[str, Any] = {"task_id": TASK, "request_id": REQUEST, "item": "light.out"}


def between_offices() -> list[tuple[Fact, str]]:
    """What a supervisor has to know, and the template that says it."""
    conferral = {
        **ASKED,
        "conferral_id": NEW_TASK,
        "parties": (WUCHANG, QINGSHAN),
        "lead": WUCHANG,
        "refusals": (),
        "until": NOON,
    }
    over = {"conferral_id": NEW_TASK, "task_id": TASK, "reason": "overdue"}
    help = {"help_id": NEW_TASK, "task_id": TASK, "to": QINGSHAN}
    return [
        (
            HandoverReceived(
                **ASKED, handover_id=NEW_TASK, giver=QINGSHAN, round=1, attempt=1, to=WUCHANG, reason="wrong_place", urgency=0,
                due=DUE, grant=True, until=NOON,
            ),
            "handover_asked",
        ),
        (
            HandoverReturned(handover_id=NEW_TASK, task_id=TASK, to=QINGSHAN, reason="wrong_place", basis="agreement:x"),
            "handover_refused",
        ),
        (ConferralOpened(**conferral), "conferral_opened"),
        (ConferralReceived(**conferral, giver=QINGSHAN), "conferral_asked"),
        (ConferralEnded.model_validate(over), "conferral_overdue"),
        (ConferralSettled.model_validate({**over, "giver": QINGSHAN}), "conferral_overdue"),
        (
            HelpReceived(
                **ASKED, help_id=NEW_TASK, to=WUCHANG, asker=QINGSHAN, urgency=0, effort=1, due=DUE, until=NOON, whistle=True
            ),
            "help_asked",
        ),
        (HelpLapsed.model_validate({**help, "reason": "unanswered"}), "help_lapsed"),
        (HelpAnswered.model_validate({**help, "reason": "nobody"}), "help_lapsed"),
    ]  # fmt: skip


@pytest.mark.parametrize(("fact", "template"), between_offices())
def test_the_supervisor_hears_what_has_to_be_seen_to_between_offices(fact: Fact, template: str) -> None:
    _, facts = when(given(offered(LI)), fact_of_the_desk(fact))
    assert told(facts) == [(supervisor(WUCHANG), template)]
    assert {queued.fact.item for queued in facts if isinstance(queued.fact, NoticeQueued)} == {"light.out"}


def test_what_goes_well_between_offices_is_told_to_nobody() -> None:
    ended = ConferralEnded(conferral_id=NEW_TASK, task_id=TASK, reason="ruled")
    comes = HelpAnswered(help_id=NEW_TASK, task_id=TASK, to=QINGSHAN, member_id="m-zhao")
    lapsed = HelpLapsed(help_id=NEW_TASK, task_id=TASK, to=QINGSHAN, reason="ended")
    assert when(given(), *map(fact_of_the_desk, (ended, comes, lapsed)))[1] == []


def test_who_is_lent_to_another_office_is_told_with_what_it_is_about() -> None:
    (asked,) = (fact for fact, template in between_offices() if template == "help_asked")
    seated = HelpSeated(help_id=NEW_TASK, task_id=TASK, asker=QINGSHAN, member_id=LI, effort=1)
    _, (queued,) = when(given(fact_of_the_desk(asked)), fact_of_the_desk(seated))
    assert told([queued]) == [(LI, "lent")]
    assert cast(NoticeQueued, queued.fact).item == "light.out"
    settled = HelpSettled(help_id=NEW_TASK, task_id=TASK, asker=QINGSHAN, member_id=LI, reason="released")
    post, (queued,) = when(given(fact_of_the_desk(asked), fact_of_the_desk(seated)), fact_of_the_desk(settled))
    assert (told([queued]), post.task(TASK).closed) == ([(LI, "help_over")], True)
    assert cast(NoticeQueued, queued.fact).item == "light.out"


def test_what_was_asked_of_the_office_and_is_over_is_told_to_the_supervisor_with_what_it_was_about() -> None:
    handover, help = (
        next(fact_of_the_desk(fact) for fact, template in between_offices() if template == asked)
        for asked in ("handover_asked", "help_asked")
    )
    lapsed = {"task_id": TASK, "reason": "ended"}
    for asked, settled, template in (
        (
            handover,
            HandoverSettled.model_validate({**lapsed, "handover_id": NEW_TASK, "giver": QINGSHAN}),
            "handover_over",
        ),
        (help, HelpSettled.model_validate({**lapsed, "help_id": NEW_TASK, "asker": QINGSHAN}), "help_over"),
    ):
        post, (queued,) = when(given(asked), fact_of_the_desk(settled))
        assert (told([queued]), post.task(TASK).closed) == ([(supervisor(WUCHANG), template)], True)
        assert cast(NoticeQueued, queued.fact).item == "light.out"


def test_what_the_office_has_answered_is_over_for_it() -> None:
    asked, *_ = (fact_of_the_desk(fact) for fact, _ in between_offices())
    refused = {
        "handover_id": NEW_TASK,
        "task_id": TASK,
        "giver": QINGSHAN,
        "reason": "wrong_place",
        "basis": "agreement:x",
    }
    post, facts = when(given(asked), fact_of_the_desk(HandoverRefused.model_validate(refused)))
    assert (facts, post.task(TASK).closed) == ([], True)


# --- words ------------------------------------------------------------------------------------------------------------


def worded(*facts: Envelope, language: Language = "zh-CN") -> tuple[str, str]:
    """The message to the resident that the last of these leads to."""
    post, _ = when(given(*facts[:-1]), facts[-1])
    (notice,) = (notice for notice in post.notices.values() if notice.recipient == RESIDENT)
    return WORDING.message(post, notice, language)


def test_who_took_it_is_named_by_role() -> None:
    title, body = worded(ENROLLED, submitted("contact"), opened(), offered(LI), accepted(LI))
    assert title == "已接单：路灯不亮"
    assert body == (
        "您在新湘小区的诉求“路灯不亮”已由志愿者接单，将尽快处理。凭查询码可随时查询进展。\nhttps://paidan.example.org/track"
    )
    assert "by a volunteer" in worded(submitted("contact"), ENROLLED, opened(), accepted(LI), language="en")[1]
    assert "工作人员" in worded(submitted("contact"), opened(), accepted(WANG))[1]


def test_the_office_that_is_responsible_now_is_named() -> None:
    assert "现由武昌区网格办负责办理" in worded(handed_over(QINGSHAN, WUCHANG), opened(task=NEW_TASK))[1]


@pytest.mark.parametrize("template", TO_RESIDENTS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_message_to_a_resident_leads_to_the_staffs_pages_or_names_an_id(template: str, language: Language) -> None:
    from dataclasses import replace

    post, _ = when(given(submitted("contact")), opened())
    (notice,) = post.notices.values()
    text = WORDING.message(post, replace(notice, template=template), language)
    digest = WORDING.digest(post, [replace(notice, template=template)] * 2, language)
    for said in (*text, *digest):
        assert not any(word in said for word in ("staff.example", TASK, REQUEST, LI))


# --- how they are reached ---------------------------------------------------------------------------------------------


class Intake:
    """Answers `qry.<district>.intake.reach` as intake does, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.answer: dict[str, Any] = {"contact": {"name": NAME, "phone": PHONE, "email": EMAIL}, "language": "zh-CN"}

    async def take(self, request: Request) -> None:
        """One question."""
        self.asked.append((request.subject, json.loads(request.data)))
        await request.answer(json.dumps(self.answer).encode())


@pytest.fixture
async def intake(ground: Ground) -> AsyncIterator[Intake]:
    """An intake on the ground's bus."""
    made = Intake()
    subscription = await ground.admin.serve("qry.*.intake.reach", made.take)
    yield made
    await subscription.end()


async def test_a_resident_is_reached_by_phone_and_nothing_of_it_is_kept(
    ground: Ground, intake: Intake, web: WebReceiver, capfd: pytest.CaptureFixture[str]
) -> None:
    await ground.notify({"phone": f"json://127.0.0.1:{web.port}/sms/{{to}}"})
    await ground.publish(submitted("contact"), opened())
    (sent,) = await ground.facts("notice.sent", 1)
    assert cast(NoticeSent, sent.fact).channel == "phone"
    assert [path for path, _, _ in web.taken] == ["/sms/19900001009"]
    (queued,) = await ground.facts("notice.queued", 1)
    assert intake.asked == [(f"qry.{WUCHANG}.intake.reach", {"request": REQUEST, "notice": queued.id})]
    facts = b"".join([one.data for one in await ground.everything()]).decode()
    out = capfd.readouterr()
    for secret in (PHONE, "19900001009", EMAIL, NAME):
        assert secret not in facts + out.out + out.err + json.dumps(web.bodies, ensure_ascii=False)


async def test_after_a_failure_the_other_way_is_tried_in_the_language_they_asked_in(
    ground: Ground, intake: Intake, web: WebReceiver, mail: MailReceiver
) -> None:
    intake.answer["language"] = "en"
    web.statuses = [500]
    address = mail.url.replace("{id}@office.example", "{to}")
    await ground.notify({"phone": f"json://127.0.0.1:{web.port}/{{to}}", "email": address})
    await ground.publish(submitted("contact"), opened())
    (sent,) = await ground.facts("notice.sent", 1)
    assert (cast(NoticeSent, sent.fact).channel, cast(NoticeSent, sent.fact).attempt) == ("email", 2)
    ((recipients, message),) = mail.taken
    assert recipients == [EMAIL]
    assert message["Subject"] == "Received: Street light out"


@pytest.mark.parametrize(
    "answer",
    [
        {"problem": {"code": "nothing_sealed", "status": 404}},
        {"problem": {"code": "erased", "status": 410}},
        {"contact": {"name": NAME}, "language": "zh-CN"},
        {"contact": {"email": EMAIL}, "language": "zh-CN"},  # no channel leads there
    ],
)
async def test_who_cannot_be_reached_is_given_up_at_once(
    ground: Ground, intake: Intake, web: WebReceiver, answer: dict[str, Any]
) -> None:
    intake.answer = answer
    await ground.notify({"phone": f"json://127.0.0.1:{web.port}/{{to}}"})
    await ground.publish(submitted("contact"), opened())
    (failed,) = await ground.facts("notice.failed", 1)
    assert cast(NoticeFailed, failed.fact).code == UNREACHABLE
    assert web.taken == []


async def test_what_the_ledger_has_not_heard_of_yet_is_asked_again(
    ground: Ground, intake: Intake, web: WebReceiver
) -> None:
    answer, intake.answer = intake.answer, {"problem": {"code": "not_found", "status": 404}}
    await ground.notify({"phone": f"json://127.0.0.1:{web.port}/{{to}}"})
    await ground.publish(submitted("contact", at=datetime.now(UTC)), opened(at=datetime.now(UTC)))
    await until(lambda: len(intake.asked) > 1)
    intake.answer = answer
    (sent,) = await ground.facts("notice.sent", 1)
    assert cast(NoticeSent, sent.fact).attempt == 1


async def test_without_intake_residents_wait_and_members_do_not(
    ground: Ground, web: WebReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.notify import sending

    monkeypatch.setattr(sending, "AGAIN_S", 0.3)
    await ground.contact(LI, channels=["wecom"])
    await ground.notify({"phone": f"json://127.0.0.1:{web.port}/{{to}}", "wecom": web.url})
    await ground.publish(submitted("contact"), opened())
    await ground.publish(offered(LI, until=datetime.now(UTC) + timedelta(hours=1)))
    await ground.facts("notice.sent", 1)
    assert [path for path, _, _ in web.taken] == ["/m-li"]
    intake = Intake()
    subscription = await ground.admin.serve("qry.*.intake.reach", intake.take)
    sent = await ground.facts("notice.sent", 2)
    assert cast(NoticeSent, sent[1].fact).attempt == 1  # waiting for intake is no failed attempt
    await subscription.end()


async def test_a_full_channel_has_residents_wait_and_is_never_given_more_than_its_cap(
    ground: Ground, intake: Intake, web: WebReceiver
) -> None:
    await ground.notify({"phone": f"json://127.0.0.1:{web.port}/{{to}}"}, caps={"phone": Cap(2, 1)})
    await ground.publish(submitted("contact"))
    for n in range(2, 6):
        await ground.publish(opened(n, task=derived_id("task", n)))
    await ground.facts("notice.sent", 4)
    times = sorted(at for _, _, at in web.taken)
    for start in times:
        assert sum(start <= at < start + timedelta(seconds=0.95) for at in times) <= 2


async def test_quiet_hours_hold_for_residents_and_urgency_breaks_through(
    ground: Ground, intake: Intake, web: WebReceiver
) -> None:
    shift = NIGHT - datetime.now(UTC)
    await ground.register(POLICY)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC) + shift  # noqa: E731
    await ground.notify({"phone": f"json://127.0.0.1:{web.port}/{{to}}"}, clock=clock, caps=FREELY)
    await ground.publish(submitted("contact", at=NIGHT), opened(at=NIGHT))
    (held,) = await ground.facts("notice.held", 1)
    assert cast(NoticeHeld, held.fact).until == datetime(2026, 11, 22, 23, 0, tzinfo=UTC)
    assert intake.asked == []  # nobody's contact is opened before its message may go
    await ground.publish(opened(2, task=NEW_TASK, at=NIGHT, urgency=2))
    await ground.facts("notice.sent", 1)
    assert len(web.taken) == 1


async def test_without_a_channel_to_residents_the_log_hears_of_them(ground: Ground, web: WebReceiver) -> None:
    await ground.notify({"wecom": web.url})
    await ground.publish(submitted("contact"), opened())
    (sent,) = await ground.facts("notice.sent", 1)
    assert cast(NoticeSent, sent.fact).channel == "console"


async def test_notify_may_ask_for_a_contact_and_may_not_answer_in_intakes_place(ground: Ground) -> None:
    bus = await Bus.connect(ground.server.url, name="notify", seed=ground.identities.seed("notify"))
    await bus.serve(f"qry.{WUCHANG}.intake.reach", Intake().take)
    await until(lambda: bus.refused is not None)
    await bus.drain()


@pytest.mark.parametrize("verb", ["offer", "enrol", "leave", "hand_over"])
async def test_notify_may_not_give_a_desk_other_commands_than_members_answers(ground: Ground, verb: str) -> None:
    bus = await Bus.connect(ground.server.url, name="notify", seed=ground.identities.seed("notify"))
    with suppress(UnavailableError):
        await bus.request(f"cmd.{WUCHANG}.desk.accept", b"{}", timeout_s=0.2)
    assert bus.refused is None
    with suppress(UnavailableError):
        await bus.request(f"cmd.{WUCHANG}.desk.{verb}", b"{}", timeout_s=0.2)
    await until(lambda: bus.refused is not None)
    await bus.drain()
