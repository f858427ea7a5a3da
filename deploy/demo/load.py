"""The load: 2,000 real service requests of Boston, through the same API, as fast as it takes them."""

from __future__ import annotations

import asyncio
import csv
import gzip
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deploy.demo.calls import Calls
from deploy.demo.diary import Diary

POSTS_AT_ONCE = 32
CHANNELS = {
    "Citizens Connect App": "app",
    "City Worker App": "patrol",
    "Employee Generated": "patrol",
    "Self Service": "web",
    "Maximo Integration": "sensor",
}
"""Where a row came from, in our words; everything else was a call."""


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of the data, oldest first."""
    with gzip.open(file, "rt", encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def submission(row: dict[str, str], items: dict[str, str]) -> dict[str, Any]:
    """A row as a request: its type, time and coordinates as they are; its area by ward."""
    return {
        "text": f"{row['type']} ({row['neighborhood']})",
        "service": items[row["type"]],
        "location": {
            "lon": float(row["long"]),
            "lat": float(row["lat"]),
            "crs": "WGS84",
            "area": f"ward-{row['ward']}",
        },
        "channel": CHANNELS.get(row["source"], "phone"),
        "language": "en",
        "reported_at": row["opened_at"],
    }


async def post_all(
    calls: Calls, diary: Diary, rows: list[dict[str, str]], register: dict[str, Any], told: Callable[[], None]
) -> float:
    """Post every row, a bounded number at a time; how many seconds it took."""
    items = {item["title"]["en"]: item["item"] for item in register["items"]}
    served = {area["area"]: area["served_by"] for area in register["areas"]}
    waiting: Iterator[dict[str, str]] = iter(rows)
    began = time.perf_counter()

    async def work() -> None:
        for row in waiting:
            body = submission(row, items)
            started = time.perf_counter()
            answer = await calls.post("intake", "/v1/requests", body, key=f"boston-{row['case_id']}")
            told()
            if not diary.expect(f"Boston {row['case_id']}", answer):
                continue
            document = answer.document
            diary.submitted(document["id"], document["district"], started, load=True)
            wanted = (body["service"], body["location"]["area"], served[body["location"]["area"]])
            if (document["item"], document["area"], document["district"]) != wanted:
                diary.fail(f"Boston {row['case_id']}: {wanted} → {document['item']} {document['area']}")

    async with asyncio.TaskGroup() as group:
        for _ in range(POSTS_AT_ONCE):
            group.create_task(work())
    return time.perf_counter() - began
