"""A staff app on the bus: `staff_app.py` shows its office's tasks as they move, `staff_app.py accept TASK MEMBER` takes one."""

import asyncio
import json
import os
import sys
from functools import partial
from pathlib import Path

import nats

DISTRICT, CREDS = os.environ["DISTRICT"], Path(os.environ["CREDS"])
SEEN = Path(os.environ.get("SEEN", "seen.jsonl"))  # a line per event: what we did, how far we are, one write


async def ask(nc, subject, **question):
    while True:  # until somebody answers: a command that comes again under its id is not done again
        try:
            answer = json.loads((await nc.request(subject, json.dumps(question).encode(), timeout=5)).data)
            problem = answer.get("problem", {})
            if problem.get("status") not in (429, 503):
                return sys.exit(f"未办理:{problem['title']}。{problem['detail']}") if problem else answer
        except (nats.errors.Error, TimeoutError):
            pass
        await asyncio.sleep(1)


async def main(verb="watch", *names):
    heard = asyncio.Queue()
    options = {"disconnected_cb": partial(heard.put, None), "inbox_prefix": f"_INBOX_{CREDS.stem}"}
    nc = await nats.connect(os.environ["NATS_URL"], user_credentials=CREDS, max_reconnect_attempts=-1, **options)
    if verb == "accept":
        data = dict(zip(("task", "member"), names, strict=True))
        command = {"id": "-".join(("accept", *names)), "token": os.environ["TOKEN"], "data": data}
        return print("已接单", (await ask(nc, f"cmd.{DISTRICT}.desk.accept", **command))["of"])
    seen = json.loads(SEEN.read_text().splitlines()[-1])["sequence"] if SEEN.exists() else None

    def show(sequence, event):
        nonlocal seen
        if seen is None or sequence > seen:
            seen, line = sequence, json.dumps({"sequence": sequence, **event}, ensure_ascii=False)
            with SEEN.open("a") as file:
                print(line, file=file)
            print(line, flush=True)

    await nc.subscribe("live.evt.*.dispatch.*.task.>", cb=heard.put)
    while True:
        page = {"after": seen}  # connected, or anew: ask for what was missed; what is live meanwhile waits in `heard`
        while "last" not in page or page["after"] < page["last"]:
            page = await ask(nc, f"qry.{DISTRICT}.desk.events", types="task.", after=page["after"])
            for one in page["events"]:
                show(one["sequence"], one["event"])
        show(page["after"], {"type": "caught up"})
        while message := await heard.get():
            show(int(message.headers["Nats-Sequence"]), json.loads(message.data))


asyncio.run(main(*sys.argv[1:]))
