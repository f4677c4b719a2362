// Drives the page at /ui with Debian's Chromium, as a person would: by what is written on it. The test that starts it
// prepares the server, and says in the environment where everything is. Ends with 1 and a sentence when something is
// not as promised, an error in the browser's console included.

import { createRequire } from "node:module";
import { readFile } from "node:fs/promises";
import assert from "node:assert/strict";

const env = process.env;
const { chromium } = createRequire(env.NODE_MODULES + "/")("playwright-core");
const wrong = [];

const context = await chromium.launchPersistentContext(env.SCRATCH + "/profile", {
  executablePath: "/usr/bin/chromium",
  headless: true,
  acceptDownloads: true,
  colorScheme: "light",
  viewport: { width: 1200, height: 950 },
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-proxy-server"],
});
context.setDefaultTimeout(60_000);

function watch(page) {
  page.on("pageerror", (error) => wrong.push(`script: ${error}`));
  page.on("dialog", (dialog) => wrong.push(`dialog: ${dialog.message()}`));
  page.on("console", (message) => {
    // An answer of 401 or 403 is logged by the browser as well; the page says it in words.
    const expected = message.text().startsWith("Failed to load resource: the server responded with a status of 4");
    if (["error", "warning"].includes(message.type()) && !expected) wrong.push(`console: ${message.text()}`);
  });
  return page;
}

async function shot(page, name) {
  if (env.SHOTS) await page.screenshot({ path: `${env.SHOTS}/${name}.png`, fullPage: true });
}

/** Waits until an element says this. */
async function says(page, selector, text) {
  await page.locator(selector).filter({ hasText: text }).waitFor();
}

async function upload(page, path) {
  await page.getByLabel("Send a file to the inbox").setInputFiles(env.FILE);
  await page.getByLabel("Path in the inbox").fill(path);
  await page.getByRole("button", { name: "Upload" }).click();
}

async function fitsTheScreen(page, what) {
  const [wide, width] = await page.evaluate(() =>
    [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
  assert.ok(wide <= width, `${what}: ${wide} pixels wide on a screen of ${width}`);
}

/** Every field and button has a name for those who do not see it. */
async function everythingHasAName(page) {
  const nameless = await page.evaluate(() => [...document.querySelectorAll("input, textarea, button, progress")]
    .filter((field) => !field.labels?.length && !field.getAttribute("aria-label") && !field.textContent.trim())
    .map((field) => field.outerHTML));
  assert.deepEqual(nameless, []);
}

try {
  const page = watch(context.pages()[0] ?? await context.newPage());

  const approvals = [];
  page.on("request", (request) => {
    const path = new URL(request.url()).pathname;
    if (path.startsWith("/approvals")) approvals.push(`${request.method()} ${path}`);
  });

  // Without a token, and with a wrong one.
  await page.goto(`${env.BASE}/ui`);
  await page.getByLabel("Token", { exact: true }).waitFor();
  await shot(page, "login");
  await page.getByLabel("Token", { exact: true }).fill("wrong");
  await page.getByRole("button", { name: "Connect" }).click();
  await says(page, "#notice", "The token is not valid");

  // With the client's token in the address, which does not stay there.
  await page.goto("about:blank");
  await page.goto(`${env.BASE}/ui#token=${env.CLIENT_TOKEN}`, { waitUntil: "commit" });
  await page.waitForURL(`${env.BASE}/w/*/ui`);
  await says(page, "#pill-connection", "Connected");
  await says(page, "#pill-scope", "collaborator");
  await says(page, "#facts", env.FOLDER);
  await everythingHasAName(page);

  // An upload waits for the host, whose token is typed in.
  await upload(page, "from/browser.txt");
  await says(page, "#approvals-state", "Only the host");
  await page.getByLabel("Host token").fill("wrong");
  await page.getByRole("button", { name: "Use it for approvals" }).click();
  await says(page, "#approvals-state", "not the host token");
  await page.getByLabel("Host token").fill(env.HOST_TOKEN);
  await page.getByRole("button", { name: "Use it for approvals" }).click();
  await page.getByRole("button", { name: /^Allow: Upload from\/browser.txt/ }).waitFor();
  await shot(page, "approval");
  await page.getByRole("button", { name: /^Allow: Upload from\/browser.txt/ }).click();
  await says(page, "#upload-state", "from/browser.txt is in the inbox");
  await upload(page, "denied.txt");
  await page.getByRole("button", { name: /^Deny: Upload denied.txt/ }).click();
  await says(page, "#upload-state", "The host said no");

  // The server tells what waits; nobody asks again and again.
  assert.ok(approvals.includes("GET /approvals/events"), approvals.join());
  let before;
  for (let tries = 0; approvals.length !== before; tries += 1) {
    assert.ok(tries < 10, `it never stops asking: ${approvals.slice(-20).join()}`);
    before = approvals.length;
    await page.waitForTimeout(3000);
  }

  // Artifacts, by whatever name.
  await page.locator("#files").getByRole("button", { name: "Refresh" }).click();
  await page.locator("#artifacts").getByText(env.ARTIFACT).waitFor();
  const coming = page.waitForEvent("download");
  await page.getByRole("button", { name: `Download ${env.ARTIFACT}` }).click();
  const download = await coming;
  assert.equal(await readFile(await download.path(), "utf8"), env.ARTIFACT_TEXT);
  await says(page, "#artifacts-state", "was downloaded");

  // A prompt that OpenCode only stores, so that no model is needed.
  if (env.OPENCODE) {
    await page.getByRole("button", { name: "Follow events" }).click();
    await says(page, "#events-state", /so far/);
    await page.getByLabel("Prompt").fill("Remember the milk.\n<b>Bold</b>");
    await page.getByLabel("Only store it").check();
    await page.getByRole("button", { name: "Send", exact: true }).click();
    await says(page, "#prompt-state", "Stored.");
    await says(page, "#messages li.user", "<b>Bold</b>");
    await page.getByRole("button", { name: "Stop events" }).click();
    await says(page, "#events-state", "off");
    await page.reload();
    await says(page, "#messages li.user", "Remember the milk.");
  }

  await page.getByRole("button", { name: "Show connect data" }).click();
  const connect = JSON.parse(await page.locator("#connect").textContent());
  assert.equal(connect.kind, "openwork.connect.v1");
  assert.equal(connect.workspaceUrl, page.url().replace(/\/ui$/, ""));
  assert.equal(connect.tokenScope, "collaborator");
  await page.getByRole("button", { name: "Hide connect data" }).click();
  await shot(page, "desk");
  await page.emulateMedia({ colorScheme: "dark" });
  await shot(page, "dark");
  await page.emulateMedia({ colorScheme: "light" });

  await page.setViewportSize({ width: 360, height: 740 });
  await fitsTheScreen(page, "a phone");
  await shot(page, "phone");
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByLabel("Token", { exact: true }).waitFor();
  await fitsTheScreen(page, "a phone, signed out");
  assert.equal(await page.evaluate(() => localStorage.getItem("openwork.toy.token")), null);
  assert.deepEqual(wrong, []);

  // What a stranger would put into the page does not run.
  const ran = await page.evaluate(() => {
    document.body.append(Object.assign(document.createElement("script"), { textContent: "window.ran = true" }));
    return window.ran === true;
  });
  assert.equal(ran, false, "an inline script ran");
  console.log("ok");
} catch (error) {
  console.error(error);
  const shown = await context.pages()[0]?.locator("body").innerText().catch(() => "nothing");
  console.error("--- the page shows\n" + shown, wrong);
  process.exitCode = 1;
} finally {
  await context.close();
}
