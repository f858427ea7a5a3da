"""
The staff apps of the guide, run as they stand: what they show is what the ledger has, whatever is killed under them.

npm's registry is asked for the three packages of the Node example; everything else is on this machine.
"""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from deploy import admitting
from deploy.running import Running
from deploy.stack import Stack

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
OFFICE = "420106"
APPS = {"python": ["staff_app.py"], "node": ["staff-app.mjs"], "curl": ["staff-app.sh"]}

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]


@pytest.mark.parametrize("file", ["staff_app.py", "staff-app.mjs", "staff-app.sh"])
async def test_an_example_is_short(file: str) -> None:
    assert len((EXAMPLES / file).read_text().splitlines()) < 60


async def test_the_lock_names_no_address() -> None:
    assert "resolved" not in (EXAMPLES / "package-lock.json").read_text()


@dataclass
class Office:
    """A running stack whose office has an app of each kind."""

    stack: Stack
    folder: Path
    environment: dict[str, str]
    submitted: int = 0

    def command(self, app: str, *words: str) -> list[str]:
        """How an example is started."""
        interpreters = {
            "python": ROOT / ".venv/bin/python",
            "node": ROOT / ".venv/bin/node",
            "curl": shutil.which("bash"),
        }
        return [str(interpreters[app]), *APPS[app], *words]

    def seen_file(self, app: str) -> Path:
        """Where an app keeps what it has seen."""
        return self.folder / f"seen-{app}"

    async def start(self, app: str) -> asyncio.subprocess.Process:
        """An app that watches."""
        with (self.folder / f"{app}.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *self.command(app),
                cwd=self.folder,
                env=self.environment | {"SEEN": str(self.seen_file(app))},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def seen(self, app: str) -> list[int]:
        """The sequences of the events that an app has shown, in the order in which it did."""
        if not self.seen_file(app).exists():
            return []
        lines = self.seen_file(app).read_text().splitlines()
        if app == "curl":
            return [int(line.split()[0]) for line in lines if "caught up" not in line]
        return [event["sequence"] for event in map(json.loads, lines) if event["type"] != "caught up"]

    async def until(self, what: str, holds: Any, within_s: float = 40) -> None:
        """Wait until it does."""
        ends = asyncio.get_running_loop().time() + within_s
        while not holds():
            logs = "\n".join(f"{file.name}: {file.read_text()[-800:]}" for file in self.folder.glob("*.log"))
            assert asyncio.get_running_loop().time() < ends, f"not in time: {what}\n{logs}"
            await asyncio.sleep(0.1)

    async def submit(self, many: int = 1) -> None:
        """So many requests in the enclave."""
        async with httpx2.AsyncClient(trust_env=False, timeout=20) as client:
            for _ in range(many):
                self.submitted += 1
                body = {"text": f"楼道灯不亮了 {self.submitted}", "location": {"area": "xinxiang"}}
                for _ in range(20):
                    try:
                        answer = await client.post(
                            f"{self.stack.urls['intake']}/v1/requests",
                            json=body,
                            headers={"Idempotency-Key": f"staff-apps-{self.submitted}"},
                        )
                        if answer.status_code < 300:
                            break
                    except httpx2.HTTPError:
                        pass
                    await asyncio.sleep(0.5)
                else:
                    raise AssertionError(answer.text)

    async def in_ledger(self, after: int) -> list[int]:
        """The sequences of all facts about tasks behind one that the office may see, from the ledger's replay."""
        async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
            token = self.stack.token("auditor", district=OFFICE)
            answer = await client.get(
                f"{self.stack.urls['ledger']}/v1/events",
                params={"district": OFFICE},
                headers={"Authorization": f"Bearer {token}"},
            )
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert lines[-1]["end"], lines[-1]
        leaves = [line["leaf"] for line in lines if "leaf" in line]
        tasks = [leaf["src"]["seq"] for leaf in leaves if leaf["subject"].split(".")[4] == "task"]
        return [sequence for sequence in tasks if sequence > after]

    async def settled(self, after: int) -> list[int]:
        """As `in_ledger`, once nothing more is coming."""
        before, now = [0], await self.in_ledger(after)
        while now != before:
            await asyncio.sleep(1)
            before, now = now, await self.in_ledger(after)
        return now

    async def tasks(self) -> list[dict[str, Any]]:
        """Open tasks of the office."""
        async with httpx2.AsyncClient(trust_env=False, timeout=20) as client:
            answer = await client.get(
                f"{self.stack.urls['dispatch']}/v1/tasks",
                params={"district": OFFICE, "limit": 1000, "status": "offered"},
                headers={"Authorization": f"Bearer {self.environment['TOKEN']}"},
            )
        found: list[dict[str, Any]] = answer.json()["tasks"]
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def office(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Office]:
    """With the demo's register, where an offer holds for an hour."""
    folder = tmp_path_factory.mktemp("apps")
    shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)
    installing = await asyncio.create_subprocess_exec(
        *(ROOT / ".venv/bin/npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"),
        cwd=folder,
        env=os.environ | {"PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    register = json.loads((ROOT / "deploy/demo/register.json").read_bytes())
    for policy in register["policies"]:
        policy["offer"] = {"amount": 1, "unit": "hours"}
    async with Stack(folder / "stack") as stack:
        await stack.apply_register(register)
        await stack.wait_until_ready()
        await stack.enrol((ROOT / "deploy/demo/members.csv").read_bytes(), OFFICE)
        running = Running.find(folder / "stack")
        for app in ("python", "node"):
            await admitting.add(running, OFFICE, app, people=None, why="tests")
        said, _ = await asyncio.wait_for(installing.communicate(), 120)
        assert installing.returncode == 0, said.decode()
        environment = {
            **os.environ,
            "NATS_URL": stack.bus_url,
            "NATS_WS_URL": str(stack.websocket_url),
            "DISTRICT": OFFICE,
            "DISPATCH": stack.urls["dispatch"],
            "TOKEN": stack.token("dispatcher", district=OFFICE),
        }
        yield Office(stack, folder, environment)


async def test_the_apps_show_what_the_ledger_has_though_everything_is_killed_under_them(office: Office) -> None:
    """Events before they start, while they run, while they are dead, and while bus and desk are."""
    await office.submit(3)
    running = {app: await start(office, app) for app in APPS}
    await office.until("everybody is there", lambda: all(office.seen_file(app).exists() for app in APPS))
    begins = {app: first(office, app) for app in APPS}
    await office.submit(5)
    for app, process in running.items():
        os.killpg(process.pid, 9)
        await process.wait()
        await office.submit(1)
        running[app] = await start(office, app)
    expected = await office.settled(max(begins.values()))
    await office.until("all have caught up", lambda: all(office.seen(app)[-1:] == expected[-1:] for app in APPS))
    await office.submit(1)
    await office.stack.kill("nats-server")
    await office.submit(4)
    await office.stack.wait_until_ready()
    await office.stack.kill("dispatch")
    await office.submit(4)
    await office.stack.wait_until_ready()
    await office.submit(2)
    for app in APPS:
        expected = await office.settled(begins[app])
        assert len(expected) >= 2 * 16
        await office.until(f"{app} has shown the last", lambda: office.seen(app)[-1:] == expected[-1:])  # noqa: B023
        assert office.seen(app) == expected, app
    for process in running.values():
        os.killpg(process.pid, 15)
        await process.wait()


async def start(office: Office, app: str) -> asyncio.subprocess.Process:
    """An app of its own kind, with its own credentials."""
    office.environment["CREDS"] = str(office.stack.identities.office_file(OFFICE, app))
    return await office.start(app)


def first(office: Office, app: str) -> int:
    """From where on an app was told."""
    line = office.seen_file(app).read_text().splitlines()[0]
    return int(line.split()[0]) if app == "curl" else int(json.loads(line)["sequence"])


@pytest.mark.parametrize("app", APPS)
async def test_an_app_accepts_a_task_and_is_told_why_a_second_may_not(office: Office, app: str) -> None:
    await office.submit(1)
    for _ in range(100):
        if free := await office.tasks():
            break
        await asyncio.sleep(0.1)
    task = free[0]
    office.environment["CREDS"] = str(office.stack.identities.office_file(OFFICE, "python" if app == "curl" else app))
    for _ in range(2):  # a repeat is answered, not repeated
        status, said = await accept(office, app, task["id"], task["offered"][0])
        assert (status, said) == (0, f"已接单 {task['id']}\n")
    status, said = await accept(office, app, task["id"], "m-wc99")
    assert (status, said) == (1, "未办理:任务已由他人接单。请看其他任务\n")


async def accept(office: Office, app: str, task: str, member: str) -> tuple[int | None, str]:
    """What became of it, in the app's words."""
    process = await asyncio.create_subprocess_exec(
        *office.command(app, "accept", task, member),
        cwd=office.folder,
        env=office.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, said.decode()
