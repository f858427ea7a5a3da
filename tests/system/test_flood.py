"""One office floods far beyond its quota: it is held back and refused, and another office notices nothing but a little time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from deploy.stack import Stack
from tests.bench.flood import CONNECTIONS, FLOODING, QUIET, Quiet, app_of, flood, offices
from tests.bench.latency import stream

pytestmark = pytest.mark.asyncio(loop_scope="module")
SECONDS = 4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Two offices, of each of which intake takes ten requests at once."""
    few = {"intake": {"PAIDAN_RATE_BURST": "10"}}
    async with offices(tmp_path_factory.mktemp("flood") / "data", environment=few) as stack:
        yield stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def quiet(stack: Stack) -> AsyncIterator[Quiet]:
    """The office that does not flood."""
    token = stack.token("dispatcher", district=QUIET)
    async with stream(stack.urls["dispatch"], token) as offers:
        yield Quiet(stack.urls["intake"], offers)


async def test_requests_beyond_a_quota_are_refused_and_another_office_s_are_all_offered(
    stack: Stack, quiet: Quiet
) -> None:
    async with flood(stack.urls["intake"], SECONDS, CONNECTIONS, 0, "1") as answered:
        assert len(await quiet.window(25)) == 25  # raises where one is refused or not offered
    assert set(answered) == {"201", "429"}
    assert 10 <= answered["201"] <= 10 + 10 * 2 * SECONDS  # what the bucket holds, and what runs in, with time to spare
    assert answered["429"] < 20 * 2 * SECONDS + CONNECTIONS  # whoever comes back at once is held back


async def test_an_app_that_asks_without_end_is_answered_in_its_turn_and_another_office_s_requests_are_all_offered(
    stack: Stack, quiet: Quiet
) -> None:
    app = await app_of(stack, FLOODING)
    async with flood(stack.bus_url, SECONDS, CONNECTIONS, 0, app) as answered:
        assert len(await quiet.window(25)) == 25
    assert 0 < answered["answered"] < 20 * 2 * SECONDS + CONNECTIONS


async def test_who_asks_more_than_can_wait_gets_no_answer_and_takes_nobody_s_turn(stack: Stack) -> None:
    bus = await stack.connect()
    try:
        asks = (bus.request(f"qry.{FLOODING}.desk.events", b"{}", timeout_s=4) for _ in range(200))
        answers = await asyncio.gather(*asks, return_exceptions=True)
        assert 40 <= sum(isinstance(answer, bytes) for answer in answers) <= 120
        assert isinstance(await bus.request(f"qry.{QUIET}.desk.events", b"{}"), bytes)
    finally:
        await bus.drain()
