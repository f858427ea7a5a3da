// A staff app on the bus, over WebSocket: Node 22 or a page. `node staff-app.mjs` shows its office's tasks as they move,
// `node staff-app.mjs accept TASK MEMBER` takes one.
import { appendFileSync, existsSync, readFileSync } from "node:fs"; // a page has localStorage instead
import { basename } from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { credsAuthenticator, wsconnect } from "@nats-io/nats-core";

const { CREDS, DISTRICT, NATS_WS_URL, TOKEN, SEEN = "seen.jsonl" } = process.env;
const nc = await wsconnect({
  servers: NATS_WS_URL,
  authenticator: credsAuthenticator(readFileSync(CREDS)),
  inboxPrefix: `_INBOX_${basename(CREDS, ".creds")}`,
  maxReconnectAttempts: -1,
  waitOnFirstConnect: true,
});

async function ask(subject, question) {
  for (;;) { // until somebody answers: a command that comes again under its id is not done again
    const answer = await nc.request(subject, JSON.stringify(question), { timeout: 5000 }).then((m) => m.json(), () => null);
    const problem = answer?.problem;
    if (answer && !problem) return answer;
    if (problem && ![429, 503].includes(problem.status)) {
      console.error(`未办理:${problem.title}。${problem.detail}`);
      process.exit(1);
    }
    await wait(1000);
  }
}

// A line per event: what we did with it and how far we are, in one write.
let seen = existsSync(SEEN) ? JSON.parse(readFileSync(SEEN, "utf8").trim().split("\n").at(-1)).sequence : null;
function show(sequence, event) {
  if (seen !== null && sequence <= seen) return;
  seen = sequence;
  const line = JSON.stringify({ sequence, ...event });
  appendFileSync(SEEN, line + "\n");
  console.log(line);
}

async function catchUp() {
  let page = { after: seen };
  while (page.after !== page.last) {
    page = await ask(`qry.${DISTRICT}.desk.events`, { types: "task.", after: page.after });
    for (const { sequence, event } of page.events) show(sequence, event);
  }
  show(page.after, { type: "caught up" });
}

const [verb, task, member] = process.argv.slice(2);
if (verb === "accept") {
  const command = { id: `accept-${task}-${member}`, token: TOKEN, data: { task, member } };
  console.log("已接单", (await ask(`cmd.${DISTRICT}.desk.accept`, command)).of);
  process.exit(0);
}
let work = Promise.resolve(); // one after the other: what is live waits until what was missed is there
const heard = (_, message) => (work = work.then(() => show(Number(message.headers.get("Nats-Sequence")), message.json())));
nc.subscribe("live.evt.*.dispatch.*.task.>", { callback: heard });
work = work.then(catchUp);
for await (const { type } of nc.status()) if (type === "disconnect") work = work.then(catchUp);
