"""The docs say what is so: their commands run, their links lead somewhere, their tables name what exists."""

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import access
from deploy.cli import PEOPLES_PACE
from deploy.options import DEFAULT_DATA
from deploy.stack import Stack

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
BLOCK = re.compile(r"^```sh run(?: needs (\w+))?\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "docs/operations.md"], ids=lambda p: p.name
)
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)", page.read_text())) - {"lands", "has"} <= targets


def test_every_command_in_the_operations_page_exists() -> None:
    named = re.findall(
        r"^\| `paidan ([a-z]+(?: [a-z][a-z-]*)?)", (ROOT / "docs/operations.md").read_text(), re.MULTILINE
    )
    assert named
    for command in named:
        words = [word for word in command.split() if not word.isupper()]
        done = subprocess.run(
            [ROOT / ".venv/bin/paidan", *words, "--help"], capture_output=True, check=False, timeout=60
        )
        assert done.returncode == 0, (command, done.stderr)


def test_the_api_page_names_every_route() -> None:
    page = (ROOT / "docs/api.md").read_text()
    named = set(re.findall(r"^\| `((?:GET|POST|PUT|DELETE) /v1/[^`]*)` \|", page, re.MULTILINE))
    assert named == {name for _, name, _ in access.declared() if " /v1/" in name}


def test_the_operations_page_explains_every_name_of_readiness() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    named = {
        name
        for file in ROOT.glob("services/*/*.py")
        for name in re.findall(r"(?:missing|lacks)\[\"([a-z]+)\"\] =", file.read_text())
    }
    assert {"nats", "permissions", "streams"} < named
    assert [name for name in sorted(named) if f"\n| `{name}` |" not in page] == []


def test_the_table_of_states_is_as_the_code_says() -> None:
    from services.dispatch.states import table

    assert table() in (ROOT / "docs/concepts.md").read_text(), table()


def test_every_decision_is_listed() -> None:
    listed = (ROOT / "docs/adr/README.md").read_text()
    assert [page.name for page in sorted((ROOT / "docs/adr").glob("0*.md")) if page.name not in listed] == []


def test_catalogues_are_as_the_code_says() -> None:
    from shared import schema

    assert schema.write(ROOT / "docs", True, {"access.md": access.page()}) == [], "run `make schema`"


def runnable() -> Iterator[tuple[str, str]]:
    """Every block that is marked to run, with where it stands, in the order of the pages; `needs` names a tool, which CI has."""
    for page in PAGES:
        for number, (tool, block) in enumerate(BLOCK.findall(page.read_text()), 1):
            if not tool or shutil.which(tool) or os.environ.get("PAIDAN_CI"):
                yield f"{page.relative_to(ROOT)} {number}", block


async def test_every_block_that_is_marked_to_run_runs(tmp_path: Path) -> None:
    blocks = dict(runnable())
    assert blocks
    register = json.loads((ROOT / "deploy/demo/register.json").read_bytes())
    for policy in register["policies"]:
        policy.update(PEOPLES_PACE)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    async with Stack(tmp_path / DEFAULT_DATA) as stack:
        await stack.apply_register(register)
        await stack.wait_until_ready()
        await stack.enrol((ROOT / "deploy/demo/members.csv").read_bytes(), "420106")
        environment = {
            **os.environ,
            "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}",
            **{service.upper(): url for service, url in stack.urls.items()},
            "NATS_URL": stack.bus_url,
            "DISPATCHER": stack.token("dispatcher", district="420106"),
            "AUDITOR": stack.token("auditor"),
            "ADMIN": stack.token("admin"),
        }
        for where, block in blocks.items():
            shell = await asyncio.create_subprocess_exec(
                "bash",
                "-euc",
                block,
                cwd=tmp_path,
                env=environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said, _ = await asyncio.wait_for(shell.communicate(), 30)
            assert shell.returncode == 0, (where, said.decode())
