"""`paidan up --tls --host 0.0.0.0`: a request through HTTPS to the ledger and back, and commands that find their way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from deploy.certificates import trusting
from deploy.errors import SetupError
from deploy.running import Running

PAIDAN = (sys.executable, "-m", "deploy.cli")
WITHIN_S = 60.0


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Running]:
    """With the demo's register, once it has been read."""
    data = tmp_path / "data"
    own_servers = {name: value for name, value in os.environ.items() if name not in ("NATS_URL", "MONGODB_URI")}
    up = subprocess.Popen(
        [*PAIDAN, "up", "--tls", "--host", "0.0.0.0", "--port", "0", "--data", str(data)],
        stdout=subprocess.PIPE,
        env=own_servers,
        text=True,
    )
    try:
        assert up.stdout
        for line in up.stdout:
            if "CURL_CA_BUNDLE" in line:
                break
        yield Running.find(data)
    finally:
        up.send_signal(signal.SIGTERM)
        up.communicate(timeout=WITHIN_S)
    assert up.returncode == 0


DEMO = Path(__file__).parents[2] / "deploy" / "demo" / "register.json"
AREA = next(area for area in json.loads(DEMO.read_text())["areas"] if area["area"] == "xinxiang")


def _json(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([*PAIDAN, *arguments], capture_output=True, text=True, timeout=WITHIN_S, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_a_request_goes_through_https_to_the_ledger_and_back(stack: Running) -> None:
    assert {url.partition(":")[0] for url in (*stack.urls.values(), stack.nats_url)} == {"https", "tls"}
    phone = "138 0013 8000"
    body = {"text": "楼道路灯不亮了", "location": {"address": "欧景苑 3 栋"}, "contact": {"phone": phone}}
    with httpx2.Client(trust_env=False, verify=trusting(stack.ca_file)) as client:
        answer = client.post(
            f"{stack.urls['intake']}/v1/requests", json=body, headers={"Idempotency-Key": "over-tls-1"}
        )
        assert answer.status_code == 201, answer.text
        case = f"{stack.urls['ledger']}/v1/cases/{answer.json()['id']}"
        headers = {"Authorization": f"Bearer {stack.token('auditor')}"}
        deadline = time.monotonic() + WITHIN_S
        while (found := client.get(case, headers=headers)).status_code != 200:
            assert time.monotonic() < deadline, found.text
            time.sleep(0.1)
    with httpx2.Client(trust_env=False) as stranger, pytest.raises(httpx2.ConnectError, match="verify failed"):
        stranger.get(case, headers=headers)
    id, district = answer.json()["id"], answer.json()["district"]
    at = ("--json", "--data", str(stack.data))
    (number := stack.data / "number").write_text(phone)  # a contact is not written on the command line
    [person] = _json("person", "find", "--contact", str(number), *at)["people"]
    assert [request["id"] for request in person["requests"]] == [id]
    seen = _json("person", "disclose", id, "--why", "contact", "--district", district, "--parts", "contact text", *at)
    assert seen["parts"] == {"contact": {"phone": phone}, "text": body["text"]}
    assert _json("person", "erase", "--request", id, "--yes", *at)["people"][0]["requests"][0]["id"] == id
    assert _json("person", "find", "--contact", str(number), *at)["people"] == []
    assert _json("bus", "apply", "--json", "--data", str(stack.data))["changes"] == []
    rebuilt = _json("ledger", "rebuild", *at)
    assert (rebuilt["cases"], rebuilt["replaced"], rebuilt["indexes"]) == (1, [], [])
    redecided = _json("ledger", "redecide", *at)
    assert redecided["decisions"] > redecided["matches"] > 0
    assert (redecided["differ"], redecided["not_run"]) == ([], {})
    with pytest.raises(SetupError, match="拒绝（4"):
        stack.post("ledger", "/v1/register", b"{}", roles=["admin"])
    _registers(stack.data)


def _registers(data: Path) -> None:
    """The register from the command line: drawn anew and previewed, checked, and who changed what."""
    at = ("--data", str(data))
    collection = _json("register", "export-polygons", *at)
    [two] = [[feature for feature in collection["features"] if feature["geometry"]][:2]]
    (file := data / "drawn.json").write_text(
        json.dumps({**collection, "features": [{**two[1], "properties": two[0]["properties"]}]})
    )
    moved = _said("register", "import-polygons", str(file), "--from", "2030-01-01", "--dry-run", *at)
    code = two[0]["properties"]["area"]
    assert f"+ 区域 area {code} from 2030-01-01" in moved
    assert "! 自 / from 2030-01-01：" in moved
    assert "重叠" in moved
    assert moved.endswith("仅预览，未改动 / a preview: nothing was changed\n")
    document = {"areas": [{**AREA, "title": {"zh": "新湘小区", "en": "Xinxiang"}, "served_by": "420107"}]}
    (file := data / "areas.json").write_text(json.dumps(document))
    changed = _said("register", "apply", str(file), "--why", "joint meeting 7", *at)
    assert "    服务承担 served_by：420106 → 420107" in changed
    told = _said("register", "area", "xinxiang", *at)
    assert "  服务承担 served_by：420107 青山区，自 / since 2024-01-01" in told
    assert "admin:operator：joint meeting 7" in told
    assert "个区域 / areas" in _said("register", "check", *at)


def _said(*arguments: str) -> str:
    return subprocess.run([*PAIDAN, *arguments], capture_output=True, text=True, timeout=WITHIN_S, check=True).stdout
