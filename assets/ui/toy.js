// The page of one workspace: what it does is what any client of the API can do. No library, no build step; all text goes
// in as text, never as markup. Errors are shown as the sentence that the server sent.
"use strict";

const $ = (id) => document.getElementById(id);
const mounted = location.pathname.match(/^(.*)\/w\/([^/]+)\/ui$/);
/** What stands before the API's paths: nothing, or the prefix of a proxy. */
const root = mounted ? mounted[1] : location.pathname.replace(/\/ui$/, "");
const id = mounted ? decodeURIComponent(mounted[2]) : null;
const TOKEN = "openwork.toy.token";
const SESSION = `openwork.toy.session.${id}`;

let token = null;
let hostToken = null;
let scope = null;
let model = null;
let session = null;
let stream = null;
let upload = null;

// --- asking the server

/** Why something failed, in words. */
class Failure extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

function headers(more) {
  const all = { Authorization: `Bearer ${token}`, ...more };
  return all;
}

async function failure(reply) {
  let told = null;
  try {
    told = await reply.json();
  } catch {
    // Whoever stands before the server answers in another way.
  }
  return describe(reply.status, told);
}

function describe(status, told) {
  // berth and OpenCode each have their shape of an error.
  const message = told?.message ?? told?.data?.message ?? told?.error?.message ?? `The server answered ${status}.`;
  if (status === 401) return new Failure("The token is not valid, or not valid any more.", status, told?.code);
  if (told?.code === "write_denied") {
    const late = told.details?.reason === "timeout";
    return new Failure(late ? "Nobody answered the question in time." : "The host said no.", status, told.code);
  }
  const limit = told?.details?.maxBytes;
  return new Failure(limit ? `${message}: at most ${bytes(limit)}.` : message, status, told?.code);
}

async function ask(method, path, { body, extra, signal } = {}) {
  let reply;
  try {
    reply = await fetch(root + path, {
      method,
      signal,
      cache: "no-store",
      headers: headers({ ...(body === undefined ? {} : { "Content-Type": "application/json" }), ...extra }),
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached.", 0);
  }
  if (!reply.ok) throw await failure(reply);
  return reply;
}

async function get(path, options) {
  return (await ask("GET", path, options)).json();
}

const opencode = (path) => `/w/${encodeURIComponent(id)}/opencode/${path}`;
const ofWorkspace = (path) => `/workspace/${encodeURIComponent(id)}/${path}`;

// --- showing

function bytes(count) {
  const units = ["bytes", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? count : count.toFixed(1)} ${units[unit]}`;
}

function element(name, text, more = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return Object.assign(made, more);
}

function say(where, text, bad = false) {
  const place = $(where);
  place.textContent = text;
  place.toggleAttribute("data-bad", bad);
}

function pill(where, text, state) {
  const place = $(where);
  place.textContent = text;
  place.dataset.state = state;
  place.hidden = false;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

/** Runs what a button does; what goes wrong is said at `where`. */
async function act(where, button, work) {
  if (button) button.disabled = true;
  try {
    await work();
  } catch (error) {
    if (error.name !== "AbortError") {
      say(where, error.message, true);
      if (error.status === 401) signIn(error.message);
    }
  } finally {
    if (button) button.disabled = false;
  }
}

// --- coming and going

function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    localStorage.setItem(TOKEN, given);
    // It should not stay in the address, nor in the history.
    history.replaceState(null, "", location.pathname + location.search);
  }
  token = localStorage.getItem(TOKEN);
}

function signIn(why) {
  stopEvents();
  stopApprovals();
  $("desk").hidden = true;
  $("login").hidden = false;
  pill("pill-connection", "Not connected", "off");
  $("pill-scope").hidden = true;
  $("pill-mode").hidden = true;
  notice(why ?? "");
  $("token").focus();
}

async function connect() {
  notice("");
  if (!token) return signIn();
  try {
    if (!id) {
      const list = await get("/workspaces");
      if (list.activeId) return location.replace(`${root}/w/${encodeURIComponent(list.activeId)}/ui`);
      return notice("The server has no workspace.");
    }
    const at = `/w/${encodeURIComponent(id)}`;
    const [status, capabilities, who] =
      await Promise.all([get(`${at}/status`), get(`${at}/capabilities`), get("/whoami")]);
    scope = who.actor.scope;
    show(status, capabilities);
  } catch (error) {
    if (error.status === 401) return signIn(error.message);
    pill("pill-connection", "Not connected", "bad");
    return notice(error.message);
  }
  $("login").hidden = true;
  $("desk").hidden = false;
  setSession(localStorage.getItem(SESSION));
  await Promise.all([loadModel(), loadMessages(), loadArtifacts(), loadApprovals()]);
  followApprovals();
}

function show(status, capabilities) {
  pill("pill-connection", "Connected", "on");
  pill("pill-scope", scope, "");
  pill("pill-mode", status.readOnly ? "read-only" : `approval: ${status.approval.mode}`, "");
  const name = status.workspace?.name ?? id;
  $("workspace-name").textContent = name;
  document.title = `${name} – berth`;
  const files = capabilities.toolProviders?.files ?? {};
  const facts = {
    Name: name,
    Id: id,
    Folder: status.workspace?.path ?? "unknown",
    Server: `berth ${status.version}`,
    Sandbox: capabilities.sandbox?.enabled ? capabilities.sandbox.backend : "none",
    Uploads: files.injection ? `up to ${bytes(files.maxBytes)}` : "switched off",
    Artifacts: files.outbox ? files.outboxPath : "switched off",
  };
  $("facts").replaceChildren(
    ...Object.entries(facts).flatMap(([term, fact]) => [element("dt", term), element("dd", fact)]),
  );
  for (const field of $("upload-form").elements) field.disabled = !files.injection || scope === "viewer";
  for (const field of $("prompt-form").elements) field.disabled = scope === "viewer";
  $("session-new").disabled = scope === "viewer";
}

// --- session

function setSession(next) {
  session = next;
  if (next) localStorage.setItem(SESSION, next);
  else localStorage.removeItem(SESSION);
  $("session-id").textContent = next ?? "none yet";
}

async function newSession() {
  const made = await (await ask("POST", opencode("session"), { body: {} })).json();
  setSession(made.id);
  await loadMessages();
}

async function loadModel() {
  // OpenCode shows its providers with their keys: not to viewers, who send no prompts either.
  if (scope === "viewer") return void ($("model").textContent = "not for viewers");
  await act("prompt-state", null, async () => {
    const told = await get(opencode("config/providers"));
    const [providerID, modelID] = Object.entries(told.default ?? {})[0] ?? [];
    model = modelID ? { providerID, modelID } : null;
    $("model").textContent = model ? `${providerID}/${modelID}` : "OpenCode’s own choice";
  });
}

function textOf(message) {
  const parts = message.parts ?? [];
  const texts = parts.filter((part) => part.type === "text").map((part) => part.text);
  const others = parts.filter((part) => part.type === "tool").map((part) => `[${part.tool}: ${part.state?.status ?? "…"}]`);
  const error = message.info?.error;
  if (error) others.push(`[${error.data?.message ?? error.name}]`);
  return [...texts, ...others].join("\n") || "…";
}

async function loadMessages() {
  const list = $("messages");
  if (!session) {
    list.replaceChildren(element("li", "No session yet: send a prompt, or begin a new one.", { className: "empty" }));
    return;
  }
  const asked = session;
  await act("prompt-state", null, async () => {
    let messages;
    try {
      messages = await get(opencode(`session/${encodeURIComponent(asked)}/message?limit=50`));
    } catch (error) {
      // OpenCode has forgotten it, or never knew it.
      if (error.status !== 404) throw error;
      setSession(null);
      return loadMessages();
    }
    if (asked !== session) return;
    const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    const rows = messages.map((message) => {
      const role = message.info?.role === "user" ? "user" : "assistant";
      const row = element("li", undefined, { className: role });
      row.append(element("span", role === "user" ? "You" : "Agent", { className: "who" }), textOf(message));
      return row;
    });
    list.replaceChildren(...(rows.length ? rows : [element("li", "Nothing was said yet.", { className: "empty" })]));
    if (atEnd) list.scrollTop = list.scrollHeight;
  });
}

async function sendPrompt() {
  const text = $("prompt").value;
  if (!text.trim()) return say("prompt-state", "There is nothing to send.", true);
  const noReply = $("no-reply").checked;
  say("prompt-state", "Sending …");
  if (!session) await newSession();
  const body = { parts: [{ type: "text", text }] };
  if (noReply) body.noReply = true;
  if (model) body.model = model;
  await ask("POST", opencode(`session/${encodeURIComponent(session)}/prompt_async`), { body });
  $("prompt").value = "";
  say("prompt-state", noReply ? "Stored." : "Sent.");
  if (!noReply && !stream) startEvents();
  // Stored a moment after the answer.
  await pause(300);
  await loadMessages();
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// --- events

let refreshing = null;

function refreshSoon() {
  refreshing ??= setTimeout(() => {
    refreshing = null;
    loadMessages();
  }, 250);
}

/** The data of each event of a stream: an EventSource could send no token. */
async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5);
  }
}

function stopEvents() {
  stream?.abort();
  stream = null;
  $("events-toggle").textContent = "Follow events";
  $("events-toggle").setAttribute("aria-pressed", "false");
  $("events-state").textContent = "off";
}

async function startEvents() {
  const ours = new AbortController();
  stream = ours;
  $("events-toggle").textContent = "Stop events";
  $("events-toggle").setAttribute("aria-pressed", "true");
  let count = 0;
  while (stream === ours) {
    try {
      $("events-state").textContent = "connecting …";
      const reply = await ask("GET", opencode("event"), { signal: ours.signal, extra: { Accept: "text/event-stream" } });
      $("events-state").textContent = "connected";
      for await (const data of events(reply)) {
        count += 1;
        const type = eventType(data);
        $("events-state").textContent = `${count} so far, last ${type}`;
        if (type.startsWith("message.") || type.startsWith("session.")) refreshSoon();
      }
    } catch (error) {
      if (stream !== ours) return;
      if (error.status >= 400 && error.status < 500) {
        stopEvents();
        $("events-state").textContent = error.message;
        return;
      }
    }
    if (stream !== ours) return;
    $("events-state").textContent = "lost, trying again …";
    await pause(2000);
  }
}

function eventType(data) {
  try {
    return JSON.parse(data).type ?? "unknown";
  } catch {
    return "unknown";
  }
}

// --- files

function sendFile(file, path) {
  // fetch does not tell how far an upload is.
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    upload = request;
    const query = path.trim() ? `?path=${encodeURIComponent(path.trim())}` : "";
    request.open("POST", root + ofWorkspace(`inbox${query}`));
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.responseType = "json";
    request.upload.onprogress = (event) => {
      if (event.lengthComputable) $("upload-progress").value = event.loaded / event.total;
    };
    request.upload.onload = () => say("upload-state", `${file.name} is sent; waiting for the answer …`);
    request.onload = () => {
      if (request.status === 200) done(request.response);
      else failed(describe(request.status, request.response));
    };
    request.onerror = () => failed(new Failure("The server cannot be reached, or hung up.", 0));
    request.onabort = () => failed(new Failure("Stopped; nothing was kept.", 0));
    const form = new FormData();
    form.append("file", file, file.name);
    request.send(form);
  });
}

async function uploadFile() {
  const file = $("file").files[0];
  if (!file) return say("upload-state", "Choose a file first.", true);
  say("upload-state", `Uploading ${file.name} (${bytes(file.size)}) …`);
  $("upload-progress").value = 0;
  $("upload-progress").hidden = $("upload-stop").hidden = false;
  try {
    const told = await sendFile(file, $("path").value);
    say("upload-state", `${told.path} is in the inbox (${bytes(told.bytes)}).`);
    $("upload-form").reset();
  } finally {
    upload = null;
    $("upload-progress").hidden = $("upload-stop").hidden = true;
  }
}

async function loadArtifacts() {
  await act("artifacts-state", $("artifacts-refresh"), async () => {
    const { items, truncated } = await get(ofWorkspace("artifacts"));
    say("artifacts-state", truncated ? "There are more than are shown." : "");
    const rows = items.map((item) => {
      const row = element("li");
      const what = element("span", item.path, { className: "what" });
      what.append(element("small", `${bytes(item.size)}, ${new Date(item.updatedAt).toLocaleString()}`));
      const button = element("button", "Download", { type: "button" });
      button.setAttribute("aria-label", `Download ${item.path}`);
      button.addEventListener("click", () => act("artifacts-state", button, () => download(item)));
      row.append(what, button);
      return row;
    });
    $("artifacts").replaceChildren(...(rows.length ? rows : [element("li", "Nothing there yet.", { className: "empty" })]));
  });
}

async function download(item) {
  say("artifacts-state", `Fetching ${item.path} …`);
  const reply = await ask("GET", ofWorkspace(`artifacts/${encodeURIComponent(item.id)}`));
  const url = URL.createObjectURL(await reply.blob());
  element("a", undefined, { href: url, download: item.path.split("/").pop() }).click();
  say("artifacts-state", `${item.path} was downloaded.`);
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// --- approvals

const mayAnswer = () => scope === "owner" || hostToken !== null;
const hostHeader = () => (hostToken === null ? {} : { "X-OpenWork-Host-Token": hostToken });
let shownApprovals = null;
/** The host token that was typed in last was none. */
let refusedHost = false;

async function loadApprovals() {
  $("host-form").hidden = mayAnswer();
  if (!mayAnswer()) {
    $("approval-list").replaceChildren();
    shownApprovals = null;
    const why = refusedHost ? "That is not the host token." : "Only the host sees and answers what waits.";
    return say("approvals-state", why, refusedHost);
  }
  let items;
  // Another look may be under way, with the same token or with a later one.
  const used = hostToken;
  try {
    ({ items } = await get("/approvals", { extra: hostHeader() }));
  } catch (error) {
    if (used !== null && error.status === 401) {
      if (hostToken !== used) return;
      hostToken = null;
      refusedHost = true;
      return loadApprovals();
    }
    shownApprovals = null;
    return say("approvals-state", error.message, true);
  }
  // Drawn anew only when it changed: a button should not vanish under somebody's finger.
  const now = items.map((item) => item.id).join();
  if (now === shownApprovals) return;
  shownApprovals = now;
  say("approvals-state", items.length ? "" : "Nothing waits.");
  $("approval-list").replaceChildren(...items.map((item) => {
    const row = element("li");
    const what = element("span", item.summary, { className: "what" });
    what.append(element("small", `${item.action}, asked by a ${item.actor.scope} at ${new Date(item.createdAt).toLocaleTimeString()}`));
    if (item.paths.length) what.append(element("small", item.paths.join(", ")));
    const button = (text, reply, className) => {
      const made = element("button", text, { type: "button", className });
      made.setAttribute("aria-label", `${text}: ${item.summary}`);
      made.addEventListener("click", () => act("approvals-state", made, () => answer(item, reply)));
      return made;
    };
    // Everything that will run, as the server shows it; text only.
    const { workspace, asker, request, preview, truncated } = item;
    const all = element("details", "");
    all.append(element("summary", "Request and files"),
      element("pre", JSON.stringify({ workspace, asker, request, preview, truncated }, null, 2)));
    what.append(all);
    row.append(what, button("Allow", "allow", "yes"), button("Deny", "deny", ""));
    return row;
  }));
}

async function answer(item, reply) {
  try {
    await ask("POST", `/approvals/${encodeURIComponent(item.id)}`, { body: { reply }, extra: hostHeader() });
    await loadApprovals();
    say("approvals-state", reply === "allow" ? "Allowed." : "Denied.");
  } catch (error) {
    await loadApprovals();
    if (error.code !== "approval_not_found") throw error;
    say("approvals-state", "It was answered already, or waited too long.", true);
  }
}

let feed = null;

function stopApprovals() {
  feed?.abort();
  feed = null;
}

/** Has the server tell when there is something new, for as long as the page may answer. */
async function followApprovals() {
  stopApprovals();
  if (!mayAnswer()) return;
  const ours = new AbortController();
  feed = ours;
  while (feed === ours) {
    try {
      const reply = await ask("GET", "/approvals/events", { signal: ours.signal, extra: hostHeader() });
      for await (const data of events(reply)) if (data) await loadApprovals();
    } catch (error) {
      if (feed !== ours) return;
      // A token for some workspaces gets no feed, which tells of all: it has to look itself.
      if (error.status >= 400 && !document.hidden) await loadApprovals();
      if (!mayAnswer()) return stopApprovals();
    }
    if (feed !== ours) return;
    await pause(2000);
  }
}

// --- connect data

function connectData() {
  return JSON.stringify({
    kind: "openwork.connect.v1",
    hostUrl: location.origin + root,
    workspaceId: id,
    workspaceUrl: `${location.origin}${root}/w/${encodeURIComponent(id)}`,
    token,
    tokenScope: scope,
    createdAt: Date.now(),
  }, null, 2);
}

function toggleConnect() {
  const place = $("connect");
  place.hidden = !place.hidden;
  place.textContent = place.hidden ? "" : connectData();
  $("connect-show").textContent = place.hidden ? "Show connect data" : "Hide connect data";
  $("connect-show").setAttribute("aria-expanded", String(!place.hidden));
}

async function copyConnect() {
  try {
    await navigator.clipboard.writeText(connectData());
    say("connect-state", "Copied. It contains your token.");
  } catch {
    // Browsers give pages without TLS no clipboard.
    if ($("connect").hidden) toggleConnect();
    getSelection().selectAllChildren($("connect"));
    say("connect-state", "This browser does not let the page copy; it is selected for you.", true);
  }
}

// --- what the controls do

function onSubmit(form, where, work) {
  $(form).addEventListener("submit", (event) => {
    event.preventDefault();
    act(where, event.submitter, work);
  });
}

function onClick(button, where, work) {
  $(button).addEventListener("click", () => act(where, $(button), work));
}

onSubmit("login-form", "connect-state", async () => {
  token = $("token").value.trim();
  localStorage.setItem(TOKEN, token);
  $("token").value = "";
  await connect();
});
onSubmit("prompt-form", "prompt-state", sendPrompt);
onSubmit("upload-form", "upload-state", uploadFile);
onSubmit("host-form", "approvals-state", async () => {
  hostToken = $("host-token").value.trim();
  refusedHost = false;
  $("host-token").value = "";
  await loadApprovals();
  followApprovals();
});
onClick("session-new", "prompt-state", newSession);
onClick("session-refresh", "prompt-state", loadMessages);
onClick("artifacts-refresh", "artifacts-state", loadArtifacts);
onClick("upload-stop", "upload-state", async () => upload?.abort());
onClick("connect-show", "connect-state", async () => toggleConnect());
onClick("connect-copy", "connect-state", copyConnect);
$("events-toggle").addEventListener("click", () => {
  if (stream) stopEvents();
  else startEvents();
});
$("sign-out").addEventListener("click", () => {
  localStorage.removeItem(TOKEN);
  token = hostToken = scope = null;
  signIn();
});
// Another link to the same page, with another token.
addEventListener("hashchange", () => {
  takeToken();
  connect();
});

takeToken();
connect();
