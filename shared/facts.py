"""
Every fact that crosses the bus: one model each, with the subject it is published under.

A fact is past tense, immutable and complete in itself; it holds no personal data and nothing that has to be looked up to
be understood. Absent optional fields are left out of the JSON. Times are UTC; coordinates are WGS-84 in 1e-7 degrees.
The JSON Schemas and the AsyncAPI document in docs/ are generated from this module (`paidan schema`).
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

HUB = "000000"
"""The district token of what concerns everybody."""
NOWHERE = "-"
"""The area token of what belongs to no area."""

Int = Annotated[int, Field(strict=True, gt=-(2**53), lt=2**53)]
"""An integer that JSON readers of every language hold exactly."""
Count = Annotated[int, Field(strict=True, ge=0, lt=2**53)]
District = Annotated[str, StringConstraints(pattern=r"^\d{6}$")]
AreaCode = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
ItemCode = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,47}$")]
Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f-]{36}$")]
MemberId = Annotated[str, StringConstraints(pattern=r"^m-[a-z0-9-]{1,40}$")]
Recipient = Annotated[str, StringConstraints(pattern=r"^[mr]-[a-z0-9-]{1,40}$")]
"""A member (`m-17`), or the resident of a request (`r-<request id>`), who is reached through what they sealed."""
Code = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,47}$")]
"""A stable word for a reason, a template, a rule: what programs branch on and people's words are looked up by."""
Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,128}$")]
Text = Annotated[str, StringConstraints(max_length=200)]
Basis = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9:._/-]{0,95}$")]
"""What a refusal or a ruling rests on, by reference (`agreement:xinxiang`, `law:fire-2021/28`): never a sentence about somebody."""
PublicKey = Annotated[str, StringConstraints(pattern=r"^U[A-Z2-7]{55}$")]
"""The public half of an NKey: whoever holds its seed is let in under this name."""
VerifierKey = Annotated[str, StringConstraints(pattern=r"^[^\s+]{1,255}\+[0-9a-f]{8}\+[A-Za-z0-9+/]{44}$")]
"""The public half of a key that notes are signed with, as C2SP signed-note writes it: `name+id+key`."""

Kind = Literal["grid_member", "volunteer", "provider", "responder"]
Channel = Literal["app", "web", "phone", "desk", "wechat", "open311", "patrol", "sensor"]
Language = Literal["zh-CN", "en"]
Grade = Annotated[int, Field(strict=True, ge=1, le=5)]
"""非常不满意 1 · 不满意 2 · 基本满意 3 · 满意 4 · 非常满意 5."""
Urgency = Annotated[int, Field(strict=True, ge=0, le=3)]
"""0 ordinary · 1 soon · 2 urgent · 3 danger to life."""


class Part(BaseModel):
    """A value inside a fact."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Fact(Part):
    """What happened. `name` is `<entity>.<past participle>`, `service` its only writer, `key` the field with the entity's id."""

    name: ClassVar[str]
    service: ClassVar[str]
    key: ClassVar[str]
    schema_version: ClassVar[int] = 1

    @classmethod
    def type(cls) -> str:
        """The CloudEvents type, for example `cn.paidan.task.offered.v1`."""
        return f"cn.paidan.{cls.name}.v{cls.schema_version}"

    def subject(self, district: str, area: str) -> str:
        """Where this fact is published: `evt.<district>.<service>.<area>.<entity>.<fact>`."""
        return f"evt.{district}.{self.service}.{area}.{self.name}"


class Point(Part):
    """A place on the ground, WGS-84, in 1e-7 degrees (about 1 cm)."""

    lon: Annotated[int, Field(strict=True, ge=-1_800_000_000, le=1_800_000_000)]
    lat: Annotated[int, Field(strict=True, ge=-900_000_000, le=900_000_000)]


class Due(Part):
    """The four clocks of a request (时限): by when to sign, to contact the resident, to finish, and to end it all."""

    sign: AwareDatetime
    contact: AwareDatetime
    handle: AwareDatetime
    life: AwareDatetime


class Sealed(Part):
    """That something was sealed beside the fact: under which key, and a salted commitment to the ciphertext."""

    kid: Hex
    commitment: Hex
    parts: tuple[Literal["contact", "text", "address"], ...]


# --- intake -----------------------------------------------------------------------------------------------------------


class RequestSubmitted(Fact):
    """A resident asked for something (下单). Written by intake once per id, fenced on its own subject."""

    name = "request.submitted"
    service = "intake"
    key = "request_id"

    request_id: Id
    fingerprint: Hex
    tracking_hash: Hex
    channel: Channel
    on_behalf: bool = False
    item: ItemCode
    item_rule: Text
    """Which rule chose the item: `given`, `word:<word>`, or `none` where nothing fitted."""
    urgency: Urgency
    urgency_rule: Text
    area: AreaCode
    area_rule: Literal["polygon", "gazetteer", "code"]
    located_in: District
    point: Point | None = None
    reported_at: AwareDatetime | None = None
    """When the client says it happened: evidence, never a clock."""
    due: Due
    same_as: Id | None = None
    """An open request that seems to be the same matter: linked, never dropped."""
    language: Language = "zh-CN"
    sealed: Sealed | None = None

    def subject(self, district: str, area: str) -> str:
        """As for every fact, and then the id: intake fences on it."""
        return f"{super().subject(district, area)}.{self.request_id}"


class RequestWithdrawn(Fact):
    """The resident no longer wants it."""

    name = "request.withdrawn"
    service = "intake"
    key = "request_id"

    request_id: Id
    reason: Code


class RequestRated(Fact):
    """The resident's judgement (评单), and whether it is solved."""

    name = "request.rated"
    service = "intake"
    key = "request_id"

    request_id: Id
    grade: Grade
    solved: bool


class RequestDisclosed(Fact):
    """
    Somebody read what the resident had sealed: who, for what, and which parts; with no parts they were shown that it is there
    (`why` is `sought`). Written before the answer is given.
    """

    name = "request.disclosed"
    service = "intake"
    key = "request_id"

    request_id: Id
    to: Text
    """`<role>:<pseudonym>`, or `service:notify` where the resident was written to."""
    office: District
    """Whose person that was."""
    why: Code
    parts: tuple[Literal["contact", "text", "address"], ...]


class RequestFrozen(Fact):
    """The case is long over: what was sealed is read only for a review or an appeal until this day, and then erased."""

    name = "request.frozen"
    service = "intake"
    key = "request_id"

    request_id: Id
    until: date


class RequestErased(Fact):
    """What the resident sealed no longer exists, nor does the key to it; every proof made before still verifies."""

    name = "request.erased"
    service = "intake"
    key = "request_id"

    request_id: Id
    kid: Hex
    reason: Literal["asked", "retention", "lost"]
    """`lost`: nobody asked; its key was gone, so that what lay there could be read by nobody any more."""


class RequestReopened(Fact):
    """The resident says it is not done (重办): a new round begins."""

    name = "request.reopened"
    service = "intake"
    key = "request_id"

    request_id: Id
    reason: Code
    round: Annotated[int, Field(strict=True, ge=2, le=1000)]
    """Which round begins: 2 for the first time it is reopened."""
    item: ItemCode
    urgency: Urgency
    language: Language = "zh-CN"
    due: Due


# --- dispatch ---------------------------------------------------------------------------------------------------------


class Duty(Part):
    """Hours on duty: on these weekdays (1 Monday … 7 Sunday) from minute to minute of the local day, `until` at most 1440."""

    days: tuple[Annotated[int, Field(strict=True, ge=1, le=7)], ...]
    since: Annotated[int, Field(strict=True, ge=0, le=1440)]
    until: Annotated[int, Field(strict=True, ge=0, le=1440)]


class MemberEnrolled(Fact):
    """Somebody may be given work from now on, or on other terms than before (网格员, 志愿者). Names and phones live in CONTACTS."""

    name = "member.enrolled"
    service = "dispatch"
    key = "member_id"

    member_id: MemberId
    kind: Kind
    areas: tuple[AreaCode, ...]
    skills: tuple[Code, ...] = ()
    capacity: Annotated[int, Field(strict=True, ge=1, le=100_000)]
    """How much open effort, in workload points, is a full load."""
    duty: tuple[Duty, ...] = ()
    """Empty: always on duty."""


class MemberLeft(Fact):
    """Somebody is no longer given work; what they hold they finish."""

    name = "member.left"
    service = "dispatch"
    key = "member_id"

    member_id: MemberId


class MemberErased(Fact):
    """How to reach somebody, and who they are, no longer exists: the id remains, and leads to nobody."""

    name = "member.erased"
    service = "dispatch"
    key = "member_id"

    member_id: MemberId


class TaskOpened(Fact):
    """The office took the request in (受理): from now on it is responsible."""

    name = "task.opened"
    service = "dispatch"
    key = "task_id"

    task_id: Id
    request_id: Id
    round: Count = 1
    area: AreaCode
    item: ItemCode
    urgency: Urgency
    effort: Count
    kinds: tuple[Kind, ...] = ()
    skills: tuple[Code, ...] = ()
    due: Due
    same_as: Id | None = None
    located_in: District | None = None
    point: Point | None = None
    language: Language = "zh-CN"
    by: Id | None = None
    """Of a task that came from another office: the hand-over that was signed, or the conferral that ruled so."""


class TaskOffered(Fact):
    """These members were asked (派单); `match_id` names the explanation."""

    name = "task.offered"
    service = "dispatch"
    key = "task_id"

    task_id: Id
    wave: Count
    members: tuple[MemberId, ...]
    item: ItemCode
    urgency: Urgency
    until: AwareDatetime
    match_id: Id


class TaskAccepted(Fact):
    """A member holds the task from now on (接单)."""

    name = "task.accepted"
    service = "dispatch"
    key = "task_id"

    task_id: Id
    member_id: MemberId


class TaskDeclined(Fact):
    """A member said no (拒单), and why."""

    name = "task.declined"
    service = "dispatch"
    key = "task_id"

    task_id: Id
    member_id: MemberId
    reason: Code


class TaskExpired(Fact):
    """An offer ran out without an answer."""

    name = "task.expired"
    service = "dispatch"
    key = "task_id"

    task_id: Id
    wave: Count
    members: tuple[MemberId, ...]


class TaskUnplaced(Fact):
    """Nobody is left to ask (无人可派): a person has to look at it now."""

    name = "task.unplaced"
    service = "dispatch"
    key = "task_id"

    task_id: Id
    match_id: Id
    item: ItemCode | None = None
    urgency: Urgency | None = None


class TaskArrived(Fact):
    """The member is on the spot (到场)."""

    name = "task.arrived"
    service = "dispatch"
    key = "task_id"

    task_id: Id
    member_id: MemberId


class TaskDone(Fact):
    """The member says it is done (办结)."""

    name = "task.done"
    service = "dispatch"
    key = "task_id"

    task_id: Id
    member_id: MemberId
    outcome: Code


class TaskClosed(Fact):
    """The case is over (结案): rated, quiet for the policy's time after being done, or withdrawn."""

    name = "task.closed"
    service = "dispatch"
    key = "task_id"

    task_id: Id
    reason: Literal["rated", "quiet", "withdrawn", "reopened"]


class TaskParked(Fact):
    """Somebody with the right has set it aside (挂账, 缓办): its clocks stand still."""

    name = "task.parked"
    service = "dispatch"
    key = "task_id"

    task_id: Id
    reason: Code


class TaskResumed(Fact):
    """It is no longer set aside: its clocks run again, to these times."""

    name = "task.resumed"
    service = "dispatch"
    key = "task_id"

    task_id: Id
    due: Due


class TaskExtended(Fact):
    """Somebody with the right has given it more time (延期)."""

    name = "task.extended"
    service = "dispatch"
    key = "task_id"

    task_id: Id
    reason: Code
    due: Due


class Candidate(Part):
    """One of the best in a match: the cost and its terms, all integers; lower is better."""

    member_id: MemberId
    cost: Int
    terms: dict[Code, Int]


class MatchExplained(Fact):
    """Why these and not others: never shared with another office."""

    name = "match.explained"
    service = "dispatch"
    key = "match_id"

    match_id: Id
    task_id: Id
    policy: Count
    considered: Count
    fell_out: dict[Code, Count]
    best: tuple[Candidate, ...]
    chosen: tuple[MemberId, ...]


# --- between offices (转办, 会商, 吹哨报到) ------------------------------------------------------------------------------

HandoverReason = Literal[
    "wrong_place", "ownership_unclear", "overlapping_duties", "information_missing", "nothing_to_do", "beyond_ability"
]
"""属地不符 · 权属不清 · 职能交叉 · 信息不全 · 无需处置 · 超出能力."""


class HandoverOffered(Fact):
    """
    An office asks another to take a task over (转办). Until `task.handed_over` it stays responsible, with its clocks running.

    The other office cannot read what came before, so everything it needs is here. `grant`: once it is handed over, its people
    may read what the resident sealed, until their task closes.
    """

    name = "handover.offered"
    service = "dispatch"
    key = "handover_id"

    handover_id: Id
    task_id: Id
    request_id: Id
    round: Count
    attempt: Count
    """1 for the first time that an office was asked for this task, one more each time after."""
    to: District
    reason: HandoverReason
    basis: Basis | None = None
    item: ItemCode
    urgency: Urgency
    due: Due
    located_in: District | None = None
    point: Point | None = None
    language: Language = "zh-CN"
    grant: bool
    until: AwareDatetime
    """When the question ends without an answer."""


class HandoverSigned(Fact):
    """The other office takes it (签收); it is theirs once the giver has written `task.handed_over`."""

    name = "handover.signed"
    service = "dispatch"
    key = "handover_id"

    handover_id: Id
    task_id: Id
    giver: District


class HandoverRefused(Fact):
    """The other office does not take it (退单), and on what that rests."""

    name = "handover.refused"
    service = "dispatch"
    key = "handover_id"

    handover_id: Id
    task_id: Id
    giver: District
    reason: HandoverReason
    basis: Basis


class HandoverLapsed(Fact):
    """The question no longer stands: the task ended meanwhile, the time is over, or it was taken back. The giver keeps it."""

    name = "handover.lapsed"
    service = "dispatch"
    key = "handover_id"

    handover_id: Id
    task_id: Id
    to: District
    reason: Literal["ended", "unanswered", "taken_back"]


class HandoverReceived(HandoverOffered):
    """Another office's question has arrived: written by the office that is asked, so that it is among its own facts."""

    name = "handover.received"

    giver: District


class HandoverReturned(Fact):
    """The other office's refusal has arrived: the task stays, and the office that offered it says so among its own facts."""

    name = "handover.returned"
    service = "dispatch"
    key = "handover_id"

    handover_id: Id
    task_id: Id
    to: District
    reason: HandoverReason
    basis: Basis


class HandoverSettled(Fact):
    """
    The question no longer stands for the office that was asked: it lapsed, or the request was withdrawn (`withdrawn`).

    Where the giver had written `task.handed_over` before it knew of the withdrawal, the task ends as it begins.
    """

    name = "handover.settled"
    service = "dispatch"
    key = "handover_id"

    handover_id: Id
    task_id: Id
    giver: District
    reason: Literal["ended", "unanswered", "taken_back", "withdrawn"]


class TaskHandedOver(Fact):
    """The one moment at which a task changes its office: the giver's task ends, the receiver opens its own (`new_task_id`)."""

    name = "task.handed_over"
    service = "dispatch"
    key = "task_id"

    task_id: Id
    request_id: Id
    round: Count
    to: District
    by: Id
    """The hand-over that was signed, or the conferral that ruled so."""
    new_task_id: Id
    item: ItemCode
    urgency: Urgency
    due: Due
    located_in: District | None = None
    point: Point | None = None
    language: Language = "zh-CN"
    grant: bool


class ConferralOpened(Fact):
    """Refused twice: the offices confer (会商) under a named lead, until a day; the giver stays responsible meanwhile."""

    name = "conferral.opened"
    service = "dispatch"
    key = "conferral_id"

    conferral_id: Id
    task_id: Id
    request_id: Id
    parties: tuple[District, ...]
    lead: District
    item: ItemCode
    refusals: tuple[Id, ...]
    until: AwareDatetime


class ConferralRuled(Fact):
    """The lead's ruling: who takes it, on what basis; with `precedent` the register keeps it for the next of this kind here."""

    name = "conferral.ruled"
    service = "dispatch"
    key = "conferral_id"

    conferral_id: Id
    task_id: Id
    giver: District
    owner: District
    item: ItemCode
    basis: Basis
    precedent: bool


class ConferralEnded(Fact):
    """The conferral is over, says the office that asked: it does as was ruled, or there is nothing left to rule on."""

    name = "conferral.ended"
    service = "dispatch"
    key = "conferral_id"

    conferral_id: Id
    task_id: Id
    reason: Literal["ruled", "ended", "overdue"]
    """`overdue`: nobody ruled in time: the first receiver keeps the task, and may offer it again."""


class ConferralReceived(ConferralOpened):
    """A conferral that an office takes part in, or leads, has arrived there."""

    name = "conferral.received"

    giver: District


class ConferralSettled(Fact):
    """The conferral is over for an office that took part in it."""

    name = "conferral.settled"
    service = "dispatch"
    key = "conferral_id"

    conferral_id: Id
    task_id: Id
    giver: District
    reason: Literal["ruled", "ended", "overdue", "withdrawn"]


class HelpAsked(Fact):
    """An office asks another for somebody's help with one task, without giving it away (借调); with `whistle` 吹哨: an hour to report in."""

    name = "help.asked"
    service = "dispatch"
    key = "help_id"

    help_id: Id
    task_id: Id
    request_id: Id
    to: District
    whistle: bool = False
    item: ItemCode
    urgency: Urgency
    effort: Count
    kinds: tuple[Kind, ...] = ()
    skills: tuple[Code, ...] = ()
    due: Due
    until: AwareDatetime


class HelpSeated(Fact):
    """The lending office has seated one of its people (报到): their load counts there; the task stays where it is."""

    name = "help.seated"
    service = "dispatch"
    key = "help_id"

    help_id: Id
    task_id: Id
    asker: District
    member_id: MemberId
    effort: Count


class HelpRefused(Fact):
    """The other office has nobody to lend, and why."""

    name = "help.refused"
    service = "dispatch"
    key = "help_id"

    help_id: Id
    task_id: Id
    asker: District
    reason: Code


class HelpLapsed(Fact):
    """Nobody reported in in time, the task ended first, or the office that asked thought better of it."""

    name = "help.lapsed"
    service = "dispatch"
    key = "help_id"

    help_id: Id
    task_id: Id
    to: District
    reason: Literal["ended", "taken_back", "unanswered"]


class HelpReceived(HelpAsked):
    """Another office's call for help has arrived, with the hour by which to report in."""

    name = "help.received"

    asker: District


class HelpAnswered(Fact):
    """The answer has arrived where help was asked for: who comes, or `reason` why nobody does."""

    name = "help.answered"
    service = "dispatch"
    key = "help_id"

    help_id: Id
    task_id: Id
    to: District
    member_id: MemberId | None = None
    reason: Code | None = None


class HelpSettled(Fact):
    """The help is over for the office that was asked; whoever was lent is free again."""

    name = "help.settled"
    service = "dispatch"
    key = "help_id"

    help_id: Id
    task_id: Id
    asker: District
    member_id: MemberId | None = None
    reason: Literal["ended", "taken_back", "unanswered", "released"]


class HelpReleased(Fact):
    """The task is done: whoever helped is free again, and the asking office may say how it was."""

    name = "help.released"
    service = "dispatch"
    key = "help_id"

    help_id: Id
    task_id: Id
    to: District
    member_id: MemberId


class HelpRated(Fact):
    """The community rates those who reported in (评价)."""

    name = "help.rated"
    service = "dispatch"
    key = "help_id"

    help_id: Id
    to: District
    grade: Grade


# --- the turn (every service that remembers) --------------------------------------------------------------------------


class Position(Part):
    """A place in the stream: which stream (by its creation) and the sequence of the last message decided on."""

    created: str
    sequence: Count


class TurnCommitted(Fact):
    """The last fact of every batch: the writer's fence, and the only cursor."""

    name = "turn.committed"
    service = "dispatch"
    key = "by"

    position: Position
    by: Text
    epoch: Count
    facts: Count
    rules: Count | None = None
    """By which version of its rules the writer decided; left out: the first."""


class InputRefused(Fact):
    """An input that cannot be decided on was set aside, so that it does not hold up the others."""

    name = "turn.input_refused"
    service = "dispatch"
    key = "code"

    sequence: Count
    code: Code


class NotifyTurnCommitted(TurnCommitted):
    """The same marker, of notify."""

    service = "notify"


class NotifyInputRefused(InputRefused):
    """The same, of notify."""

    service = "notify"


# --- notify -----------------------------------------------------------------------------------------------------------


class NoticeQueued(Fact):
    """Somebody is to be told something: once per cause and recipient."""

    name = "notice.queued"
    service = "notify"
    key = "notice_id"

    notice_id: Id
    cause: Id
    recipient: Recipient
    template: Code
    task_id: Id
    item: ItemCode
    area: AreaCode
    urgent: bool
    until: AwareDatetime | None = None


class NoticeSent(Fact):
    """The channel took the message."""

    name = "notice.sent"
    service = "notify"
    key = "notice_id"

    notice_id: Id
    channel: Code
    attempt: Count


class NoticeFailed(Fact):
    """The channel did not take it; `retry_at` is absent where nothing more will be tried."""

    name = "notice.failed"
    service = "notify"
    key = "notice_id"

    notice_id: Id
    channel: Code
    attempt: Count
    code: Code
    retry_at: AwareDatetime | None = None


class NoticeHeld(Fact):
    """It waits for the end of the recipient's quiet hours."""

    name = "notice.held"
    service = "notify"
    key = "notice_id"

    notice_id: Id
    until: AwareDatetime


class NoticeAnswered(Fact):
    """Its recipient answered with the message's one-time code (短信回复) and the desk did what they said: the code is used up."""

    name = "notice.answered"
    service = "notify"
    key = "notice_id"

    notice_id: Id
    verb: Literal["accept", "decline", "arrive", "done"]
    reason: Code | None = None
    via: Code
    """link, or the webhook that brought it."""


# --- the register (台账), written by ledger ----------------------------------------------------------------------------


class Name(Part):
    """What people call it, Chinese first."""

    zh: Text
    en: Text

    def said(self, language: Language) -> str:
        """In one language."""
        return self.zh if language == "zh-CN" else self.en


class RegisterFact(Fact):
    """A change of the register; `register.applied` ends each applied document."""

    service = "ledger"


class DistrictSet(RegisterFact):
    """A district office that has a desk on this bus."""

    name = "register.district_set"
    key = "district"

    district: District
    title: Name
    office: Name
    zone: Text = "Asia/Shanghai"
    rate_limited: bool = True
    """False for a load whose sender is trusted: intake's token bucket leaves it alone."""


class AreaSet(RegisterFact):
    """An area and its four dated owners: where it lies, who runs it, who owns it, who serves it."""

    name = "register.area_set"
    key = "area"

    area: AreaCode
    title: Name
    level: Code
    """district, street, community, estate, building or grid: depth differs per city."""
    parent: AreaCode | None = None
    valid_from: date
    located_in: District
    administered_by: District
    owned_by: Text
    """A company in its own words, or the code of an office on this bus."""
    served_by: District
    words: tuple[Text, ...] = ()
    """The gazetteer: address words by which people name it."""
    polygon: tuple[tuple[tuple[Int, Int], ...], ...] = ()
    """Rings of [lon, lat] in 1e-7 degrees, outer first; empty where only words and code lead here."""


PARTIES_MAX = 20
"""Of one agreement: all of them are named in every envelope from the enclave, and an envelope's attributes are short."""


class AgreementSet(RegisterFact):
    """What offices agreed for an enclave (插花地), from day to day; the next one for the same area has a code of its own."""

    name = "register.agreement_set"
    key = "agreement"

    agreement: AreaCode
    area: AreaCode
    parties: Annotated[tuple[District, ...], Field(max_length=PARTIES_MAX)]
    lead: District
    services: tuple[Text, ...]
    """What it covers, in the words that were signed."""
    items: tuple[ItemCode, ...] = ()
    """The lines of the catalogue it covers, each with all below it (`repair` covers `repair.leak`); empty: all."""
    valid_from: date
    valid_to: date | None = None
    """The last day."""


class App(Part):
    """A program of an office that the bus lets in: a short name, and the public half of its key."""

    app: AreaCode
    key: PublicKey


class OfficeSet(RegisterFact):
    """What a district office may connect to the bus with; no apps: nothing any more. The bus is brought to it within a minute."""

    name = "register.office_set"
    key = "district"

    district: District
    apps: Annotated[tuple[App, ...], Field(max_length=50)] = ()
    people: bool = True
    """Whether its people may connect with their own tokens."""


class PrecedentSet(RegisterFact):
    """What a conferral ruled: requests for this item in this area go to this office from that day on; `owner` absent: no longer."""

    name = "register.precedent_set"
    key = "area"

    area: AreaCode
    item: ItemCode
    owner: District | None = None
    conferral: Id | None = None
    basis: Basis
    valid_from: date


Unit = Literal["seconds", "minutes", "hours", "working_hours", "working_days"]


class Limit(Part):
    """How long something may take, in a unit that a calendar understands."""

    amount: Count
    unit: Unit


class Limits(Part):
    """The four limits of an item."""

    sign: Limit
    contact: Limit
    handle: Limit
    life: Limit


class ItemSet(RegisterFact):
    """A line of the catalogue (服务清单)."""

    name = "register.item_set"
    key = "item"

    item: ItemCode
    title: Name
    category: tuple[Text, Text]
    words: tuple[Text, ...] = ()
    effort: Count
    kinds: tuple[Kind, ...] = ()
    skills: tuple[Code, ...] = ()
    urgency: Urgency = 0
    limits: Limits
    same_radius_m: Count = 0
    same_window_s: Count = 0
    """Two requests for this item this near and this close in time are probably one matter; 0: never."""
    phone: Text | None = None
    """The number to ring where the system is down and it cannot wait."""
    facility: bool = False
    """部件 (a lamp, a manhole cover): its owner goes first, then the place; 事件, all else: the place, then the owner."""


class UrgencySet(RegisterFact):
    """Words that raise a request's urgency, whatever the item."""

    name = "register.urgency_set"
    key = "urgency"

    urgency: Urgency
    words: tuple[Text, ...]


class CalendarSet(RegisterFact):
    """Working time: weekly hours, holidays and make-up working days (调休)."""

    name = "register.calendar_set"
    key = "calendar"

    calendar: AreaCode
    zone: Text
    hours: tuple[tuple[Count, Count], ...]
    """Working spans of a day, in minutes from local midnight."""
    workdays: tuple[Count, ...]
    holidays: tuple[date, ...] = ()
    makeup: tuple[date, ...] = ()


class PolicySet(RegisterFact):
    """How a district's desk behaves; `version` goes into every explanation."""

    name = "register.policy_set"
    key = "district"

    district: District
    version: Count
    calendar: AreaCode
    offer: Limit
    """How long an offer waits for an answer."""
    waves: Count = 4
    """After so many offers without a yes the task is unplaced."""
    close_after: Limit
    """A task that is done and not rated closes after this."""
    weights: dict[Code, Int]
    quiet: tuple[Count, Count] | None = None
    """Minutes of the local day between which members are not disturbed; may span midnight."""
    freeze_after: Annotated[int, Field(strict=True, ge=1, le=36_500)] = 180
    """Days after a case closed, from which what its resident sealed is read only for a review or an appeal."""
    erase_after: Annotated[int, Field(strict=True, ge=1, le=36_500)] = 1095
    """Days after a case closed, after which it is erased."""


Condition = Literal[
    "filed", "found", "contactable", "contacted", "contacted_in_time", "offered", "declined", "signed", "signed_in_time",
    "done", "done_in_time", "due", "closed", "closed_in_time", "rated", "satisfied", "solved", "reworked",
    "passed_on", "returned", "parked", "extended", "withdrawn", "duplicate", "unplaced",
]  # fmt: skip
"""What may be so of one round of a case; docs/concepts.md says of each which facts make it so."""
Counted = Literal["begun", "sign", "contact", "handle", "life", "done", "closed", "rated", "passed_on"]
"""The moment at which a round counts: when it began, when one of its clocks runs out, or when that happened first."""


class Formula(Part):
    """
    One figure: of the rounds for which all of `denominator` holds, the share for which all of `numerator` does too.

    `without`: a round for which one of these holds counts nowhere, and is shown as excluded.
    """

    figure: Code
    title: Name
    counted: Counted
    denominator: tuple[Condition, ...] = ()
    numerator: tuple[Condition, ...] = ()
    without: tuple[Condition, ...] = ()
    adds: Literal["rounds", "owners"] = "rounds"
    """What each adds to the numerator: one, or how many offices were responsible for its case one after the other."""
    grade: Grade = 3
    """From which grade on a resident is `satisfied`."""


class FormulaSet(RegisterFact):
    """By which formulas an office's figures are computed, in months whose first day is this one or later; `000000`: everybody else's."""

    name = "register.formula_set"
    key = "district"

    district: District
    version: Count
    valid_from: date
    formulas: Annotated[tuple[Formula, ...], Field(min_length=1, max_length=40)]
    weights: dict[Code, Count] = {}
    """Of the figures that make the composite score (综合得分), for example 30, 35 and 35."""


class RegisterApplied(RegisterFact):
    """The end of one batch of an applied document, and the register's own fence."""

    name = "register.applied"
    key = "by"

    by: Text
    why: Text
    digest: Hex
    facts: Count
    more: bool = False
    """The document goes on in another batch: until that has come, what was applied before it holds."""


class LedgerActed(Fact):
    """Somebody with the rights of an administrator did something that is no fact by itself: which act, on what, and why."""

    name = "ledger.acted"
    service = "ledger"
    key = "act"

    act: Code
    of: Text
    why: Text


class ExportFilter(Part):
    """Which facts an export was asked for; nothing: all that its asker may read."""

    district: District | None = None
    parties: tuple[District, ...] | None = None
    area: AreaCode | None = None
    request: Id | None = None
    types: tuple[Text, ...] | None = None
    time_from: AwareDatetime | None = None
    time_to: AwareDatetime | None = None


class LedgerExported(Fact):
    """Somebody is given an export: which facts, as of which size of the log, and why. On record before the first byte leaves."""

    name = "ledger.exported"
    service = "ledger"
    key = "format"

    format: Code
    filter: ExportFilter
    size: Count
    by: Text
    """`<role>:<pseudonym>`."""
    why: Text


class LedgerKeyRotated(Fact):
    """The log signs with a new key, from the checkpoint after this size on; until a day with the old one as well."""

    name = "ledger.key_rotated"
    service = "ledger"
    key = "new"

    old: VerifierKey
    new: VerifierKey
    from_size: Annotated[int, Field(strict=True, ge=0)]
    until: AwareDatetime
    why: Text


# --- figures (指标), written by ledger ----------------------------------------------------------------------------------


class FigureAppealed(Fact):
    """An office asks that a case be left out of one of its figures, and why (申诉)."""

    name = "figure.appealed"
    service = "ledger"
    key = "appeal_id"

    appeal_id: Id
    request_id: Id
    figure: Code
    reason: Code
    why: Text


class FigureRuled(Fact):
    """Somebody else has ruled on an appeal: only where it is `granted` the case is left out."""

    name = "figure.ruled"
    service = "ledger"
    key = "appeal_id"

    appeal_id: Id
    granted: bool
    why: Text


Month = Annotated[str, StringConstraints(pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])$")]


class BuildingScored(Fact):
    """What one building's people say of another in a month (楼栋互评); said again, the last word counts."""

    name = "building.scored"
    service = "ledger"
    key = "building"

    building: AreaCode
    by: AreaCode
    month: Month
    points: Annotated[int, Field(strict=True, ge=0, le=100)]


CATALOGUE: tuple[type[Fact], ...] = (
    RequestSubmitted, RequestWithdrawn, RequestRated, RequestReopened, RequestDisclosed, RequestFrozen, RequestErased,
    MemberEnrolled, MemberLeft, MemberErased,
    TaskOpened, TaskOffered, TaskAccepted, TaskDeclined, TaskExpired, TaskUnplaced, TaskArrived, TaskDone, TaskClosed,
    TaskParked, TaskResumed, TaskExtended,
    MatchExplained, TurnCommitted, InputRefused,
    HandoverOffered, HandoverReceived, HandoverSigned, HandoverRefused, HandoverReturned, HandoverLapsed, HandoverSettled,
    TaskHandedOver, ConferralOpened, ConferralReceived, ConferralRuled, ConferralEnded, ConferralSettled,
    HelpAsked, HelpReceived, HelpSeated, HelpRefused, HelpAnswered, HelpLapsed, HelpReleased, HelpSettled, HelpRated,
    NoticeQueued, NoticeSent, NoticeFailed, NoticeHeld, NoticeAnswered, NotifyTurnCommitted, NotifyInputRefused,
    DistrictSet, AreaSet, AgreementSet, ItemSet, UrgencySet, CalendarSet, PolicySet, OfficeSet, PrecedentSet, FormulaSet, RegisterApplied,
    LedgerActed, LedgerExported, LedgerKeyRotated, FigureAppealed, FigureRuled, BuildingScored,
)  # fmt: skip

BY_SUBJECT: dict[str, type[Fact]] = {f"{fact.service}.{fact.name}": fact for fact in CATALOGUE}
"""`<service>.<entity>.<fact>` → the model."""


def plain(value: Any) -> Any:
    """A fact or a part as orjson wants it: its fields without the absent ones."""
    if isinstance(value, BaseModel):
        return {name: held for name, held in vars(value).items() if held is not None}
    raise TypeError(f"{type(value).__name__} does not belong in a fact")


def instant(moment: datetime) -> datetime:
    """A moment as facts hold it: whole milliseconds."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
