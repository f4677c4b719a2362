// Uses an OpenCode as its own SDK does, and prints what came of each call. Run twice, directly and through berth, the
// two transcripts must be equal: ids, times and other chance are replaced here, by the order in which they appear.
//
//   node opencode_sdk.mjs SDK-FOLDER BASE-URL AUTHORIZATION DIRECTORY
import { pathToFileURL } from "node:url";
import { setTimeout as pause } from "node:timers/promises";

const [sdk, baseUrl, authorization, directory] = process.argv.slice(2);
const { createOpencodeClient } = await import(pathToFileURL(`${sdk}/dist/client.js`));
const client = createOpencodeClient({ baseUrl, directory, headers: { Authorization: authorization } });

const known = new Map();
const name = (kind, id) => {
  if (!known.has(id)) known.set(id, `<${kind} ${[...known.values()].filter((n) => n.startsWith(`<${kind} `)).length + 1}>`);
  return known.get(id);
};

function plain(value, key) {
  if (Array.isArray(value)) return value.map((item) => plain(item, key));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)).map(([k, v]) => [k, plain(v, k)]));
  }
  if (typeof value === "number") return value > 1e12 ? "<time>" : key === "pid" ? "<pid>" : value;
  if (typeof value !== "string") return value;
  if (key === "slug") return "<slug>";
  return value
    .replaceAll(baseUrl, "<base>")
    .replace(/\b(ses|msg|prt|pty|per|evt|que|wrk|prj|err)_[A-Za-z0-9]+/g, (id, kind) => name(kind, id))
    .replace(/\d{4}-\d\d-\d\dT[\d:.]+Z/g, "<time>");
}

const print = (what, told) => console.log(JSON.stringify({ what, ...plain(told) }));

// What was said over HTTP, beside what the SDK makes of it.
async function call(what, promise) {
  const { data, error, response } = await promise;
  const headers = Object.fromEntries(
    ["content-type", "content-encoding", "location", "etag", "x-next-cursor"].map((h) => [h, response?.headers.get(h)]).filter(([, v]) => v),
  );
  print(what, { status: response?.status, headers, data, error: error instanceof Error ? error.message : error });
  return data;
}

// Events of the sessions made here, until the stream is given up.
const events = [];
const giveUp = new AbortController();
const { stream } = await client.event.subscribe({ signal: giveUp.signal });
const connected = (async () => {
  const first = await stream.next();
  print("first event", { event: first.value });
})();
await connected;
const following = (async () => {
  try {
    for await (const event of stream) events.push(event);
  } catch {}
})();

await call("path", client.path.get());
await call("config", client.config.get());
await call("agents", client.app.agents());
await call("commands", client.command.list());
await call("providers", client.config.providers());
await call("list files", client.file.list({ query: { path: "." } }));
await call("read a file", client.file.read({ query: { path: "größe & co/read me.txt" } }));
await call("read a large file", client.file.read({ query: { path: "large.txt" } }));
await call("find text", client.find.text({ query: { pattern: "need.e+" } }));
await call("find files", client.find.files({ query: { query: "read" } }));
const one = await call("create a session", client.session.create({ body: { title: "Größe 100%" } }));
const id = one.id;
await call("rename it", client.session.update({ path: { id }, body: { title: "renamed" } }));
await call("say something", client.session.prompt({ path: { id }, body: { noReply: true, parts: [{ type: "text", text: "hello" }] } }));
await call(
  "say a lot",
  client.session.prompt({ path: { id }, body: { noReply: true, parts: [{ type: "text", text: "ü".repeat(200_000) }] } }),
);
const messages = await call("messages", client.session.messages({ path: { id } }));
await call("one message", client.session.message({ path: { id, messageID: messages[0].info.id } }));
await call("todo", client.session.todo({ path: { id } }));
const child = await call("a child", client.session.create({ body: { parentID: id, title: "child" } }));
await call("children", client.session.children({ path: { id } }));
const fork = await call("fork", client.session.fork({ path: { id }, body: {} }));
await call("sessions", client.session.list().then((told) => ({ ...told, data: told.data.filter((s) => known.has(s.id)) })));
await call("log", client.app.log({ body: { service: "it", level: "info", message: "x" } }));
await call("no such session", client.session.get({ path: { id: "ses_none" } }));
await call("nonsense", client.session.prompt({ path: { id }, body: { parts: "none" } }));
for (const it of [child.id, fork.id, id]) await call("delete", client.session.delete({ path: { id: it } }));

// The last of them is the deletion of the first session.
for (let tries = 0; tries < 200 && !events.some((e) => e.type === "session.deleted" && e.properties.info.id === id); tries++) await pause(50);
giveUp.abort();
await following;
const ours = events.filter((e) => /^(session|message)\./.test(e.type) && JSON.stringify(e).includes(id));
// How often it says that something was updated is chance.
print("events", { types: [...new Set(ours.map((e) => e.type))].sort() });
print("first of them", { event: ours[0] });
process.exit(0);
