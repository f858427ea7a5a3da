"""What several commands of `paidan` have in common: options, and how they read and print."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.errors import Said, SetupError

Data = Annotated[Path, typer.Option("--data", help="数据目录 / the stack's folder", envvar="PAIDAN_DATA")]
Json = Annotated[bool, typer.Option("--json", help="输出 JSON / print JSON")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="只检查，不改动 / check only, change nothing")]
DEFAULT_DATA = Path(".paidan")


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises SetupError where there is none."""
    try:
        document = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise SetupError(
            Said(f"{file} 不是有效的 JSON：{error}", f"{file} is not valid JSON"), Said("请修正文件", "mend the file")
        ) from error
    if not isinstance(document, dict):
        raise SetupError(
            Said(f"{file} 不是一个 JSON 对象", f"{file} is not a JSON object"), Said("请修正文件", "mend the file")
        )
    return document


def print_json(document: object) -> None:
    """As `--json` says it."""
    typer.echo(json.dumps(document, ensure_ascii=False, indent=2))


def dry(dry_run: bool) -> dict[str, str]:
    """The query of a call that is to change nothing."""
    return {"dry_run": "true"} if dry_run else {}
