"""One office floods intake far beyond its quota: it is refused, and another office notices nothing but a little time."""

from __future__ import annotations

from pathlib import Path

from tests.bench.flood import CONNECTIONS, QUIET, Quiet, flood, offices
from tests.bench.latency import stream


async def test_a_flood_is_refused_and_the_other_office_s_requests_are_all_offered(tmp_path: Path) -> None:
    async with (
        offices(tmp_path / "data", environment={"intake": {"PAIDAN_RATE_BURST": "10"}}) as stack,
        stream(stack.urls["dispatch"], stack.token("dispatcher", district=QUIET)) as offers,
    ):
        quiet = Quiet(stack.urls["intake"], offers)
        async with flood(stack.urls["intake"], 4, CONNECTIONS, 0, 1) as answered:
            took_ms = await quiet.window(25)  # raises where one is refused or not offered
        assert len(took_ms) == 25
        assert set(answered) == {"201", "429"}
        assert 10 <= answered["201"] <= 10 + 10 * 8  # what the bucket holds, and what runs in, with time to spare
        assert answered["429"] < 8 * 25 + CONNECTIONS  # whoever comes back at once is held back
