// The operator's page. Whatever comes from data becomes a text node, never markup.
"use strict";

// -- small helpers ------------------------------------------------------------------

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "src" || name === "value" || name === "checked") node[name] = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}
const el = (tag, props, ...children) => fill(document.createElement(tag), props, children);
const draw = (tag, props, ...children) => fill(document.createElementNS(SVG, tag), props, children);
const unseen = (text) => el("span", { class: "unseen" }, text);

const ACTIONS = { pass: "passed", repair: "mended", block: "refused" };
const FATES = { ...ACTIONS, refused: "not answered", failed: "failed", gone: "caller left", none: "none" };
const STAGES = {
  "checks input": "Request is checked", "model draft": "Model answers", "checks stream": "Checked while made",
  "checks output": "Draft is checked", "model caption": "Picture is described", "checks description": "Description is checked",
  "model closed": "Answered with eyes closed", "checks caption": "That answer is checked", "model plan": "A safe answer is planned",
  "model rewrite": "Answer is rewritten", "checks rewrite": "Rewritten answer is checked", "model detoxify": "Answer is detoxified",
  "checks detoxify": "Detoxified answer is checked", "model resample": "Model answers anew", "checks resample": "New answers are checked",
  "model helpful": "Is it helpful?", "checks excise": "What was cut, and the rest checked", "model resume": "Answer is resumed",
  "checks resume": "Resumed answer is checked", "checks unreadable": "Unreadable parts", whole: "Whole request", "first byte": "First byte of a stream",
};
const STEPS = { answer: "the model's own answer", input: "at the request", output: "no repair passed", cut: "cut in mid-stream", unfinished: "broke off",
  caption: "eyes closed", rewrite: "rewritten", detoxify: "detoxified", resample: "answered anew", excise: "sentences cut", resume: "resumed" };
const PART = { description: "caption", closed: "caption", plan: "rewrite", helpful: "resample", beginning: "resume" };

const nameStage = (name) => STAGES[name] || name;
const count = (n, one, many) => `${n.toLocaleString()} ${n === 1 ? one : many || one + "s"}`;
const two = (score) => (typeof score === "number" ? score.toFixed(2) : "–");
function duration(ms) {
  if (typeof ms !== "number") return "–";
  if (ms < 1000) return `${+ms.toFixed(ms < 10 ? 1 : 0)} ms`;
  return ms < 60000 ? `${+(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s` : `${+(ms / 60000).toFixed(1)} min`;
}
function clock(seconds, long) {
  const date = new Date(seconds * 1000), today = date.toDateString() === new Date().toDateString();
  const time = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  const day = date.toLocaleDateString([], { day: "numeric", month: "short", year: long ? "numeric" : undefined });
  return el("time", { datetime: date.toISOString(), title: date.toISOString() }, today && !long ? time : `${day}, ${time}`);
}
const spaced = (names) => names.join(", ").replaceAll("_", " ");
const byPolicy = (tag) => String(tag).split("@")[0];

// -- asking the sidecar ---------------------------------------------------------------

const KEY = "mmguard.operator";
class Told extends Error {
  constructor(message, status) { super(message); this.status = status; }
}
async function ask(place, body, signal) {
  const headers = { authorization: `Bearer ${sessionStorage.getItem(KEY) || ""}` };
  const how = body === undefined ? { headers } : { method: "POST", headers: { ...headers, "content-type": "application/json" }, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(`ui/api/${place}`, { ...how, signal, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Told("the sidecar cannot be reached", 0);
  }
  const data = await answer.json().catch(() => ({}));
  if (answer.status === 401 && place !== "try") { signOut(); throw new Told("the key is not known any more", 401); }
  if (!answer.ok) throw new Told((data.error && data.error.message) || data.detail || `status ${answer.status}`, answer.status);
  return data;
}
function trouble(error) {
  if (error && (error.name === "AbortError" || error.status === 401)) return;
  $("trouble").hidden = !error;
  $("trouble").textContent = error ? `Something is wrong: ${error.message}.` : "";
  if (error && !(error instanceof Told)) console.error(error);
}

// -- coming and going -----------------------------------------------------------------

let state = null;
async function signIn(key) {
  sessionStorage.setItem(KEY, key);
  try {
    state = await ask("state");
  } catch (error) {
    sessionStorage.removeItem(KEY);
    $("wrong").textContent = error.status === 401 ? "This is not the operator's key." : `It cannot be opened: ${error.message}.`;
    $("key").setAttribute("aria-invalid", "true");
    $("gate").hidden = false;
    $("key").focus();
    $("key").select();
    return;
  }
  $("wrong").textContent = $("key").value = "";
  $("key").removeAttribute("aria-invalid");
  $("gate").hidden = true;
  $("app").hidden = false;
  begin();
}
function signOut() {
  sessionStorage.removeItem(KEY);
  state = null;
  clearTimeout(timer);
  if (running) running.abort();
  if ($("sheet").open) $("sheet").close();
  // What an operator has seen goes with the key.
  for (const id of ["rows", "sheet-body", "sheet-title", "tried", "policy", "policy-names", "charts", "no-audit"]) $(id).replaceChildren();
  $("try").reset();
  dropPicture();
  $("app").hidden = true;
  $("gate").hidden = false;
  $("key").focus();
}
function begin() {
  list.facets = false;
  list.rows = [];
  fillPolicies();
  route();
}

// -- where we are -------------------------------------------------------------------

const ROOMS = ["decisions", "playground", "policies", "load"];
const TITLES = { decisions: "Decisions", playground: "Playground", policies: "Policies", load: "Load" };
let room = "", timer = 0, turn = 0;
function route() {
  if (!state) return;
  const [, wanted, id] = location.hash.split("/");
  const next = ROOMS.includes(wanted) ? wanted : "decisions", moved = next !== room || $(next).hidden;
  room = next;
  for (const name of ROOMS) $(name).hidden = name !== room;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#/${room}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${TITLES[room]} – mmguard`;
  if (moved) { trouble(null); tick(true); }
  if (room === "decisions" && id) openDecision(Number(id));
  else if ($("sheet").open) $("sheet").close();
}
async function tick(first) {
  clearTimeout(timer);
  const mine = ++turn;
  let wait = 2000;
  try {
    if (document.hidden && !first) return;
    if (first || turn % 5 === 0) { state = await ask("state"); health(); }
    if (room === "decisions") await refreshList(first);
    if (room === "policies" && first) await showPolicies();
    if (room === "load") { await showLoad(); wait = span() > 3600 ? 60000 : 5000; }
    if (room === "playground") wait = 10000;
    trouble(null);
  } catch (error) {
    trouble(error);
    wait = 5000;
  } finally {
    if (state && mine === turn) timer = setTimeout(tick, wait);
  }
}
function health() {
  const audit = state.audit, bad = audit && (!audit.healthy || audit.lost);
  const told = !audit ? "" : !audit.healthy ? "The audit cannot be written" : audit.lost ? `${count(audit.lost, "decision")} lost` : "";
  $("health").className = bad ? "health bad" : "health";
  $("health").setAttribute("role", bad ? "status" : "none");
  $("health").textContent = told || `${state.flying} in flight`;
}

// -- the list of decisions ------------------------------------------------------------

// Rows that live decisions may push the page to.
const MOST = 500;
const list = { rows: [], more: null, live: true, waiting: [], facets: false };
function wanted() {
  const form = new FormData($("filters")), query = {};
  for (const name of ["action", "step", "policy", "route", "text"]) if (form.get(name)) query[name] = form.get(name);
  if (form.get("key")) query.key = form.get("key") === "(none)" ? "" : form.get("key");
  const age = form.get("span");
  if (age === "range") {
    for (const name of ["since", "until"]) {
      const time = new Date(form.get(name)).getTime();
      if (form.get(name) && !Number.isNaN(time)) query[name] = time / 1000;
    }
  } else if (age) query.since = Date.now() / 1000 - Number(age);
  return query;
}
async function refreshList(first) {
  $("with-audit").hidden = !state.audit;
  $("no-audit").hidden = Boolean(state.audit);
  $("live").hidden = !state.audit;
  if (!state.audit) return tellNoAudit();
  if (!list.facets) await fillFilters();
  if (first || !list.rows.length) return renew();
  if (!list.live) return;
  const page = await ask("decisions", { ...wanted(), after: (list.waiting[0] || list.rows[0]).id, limit: 200 });
  // More than one page has come: from here on there would be a gap.
  if (page.more !== null) return renew();
  list.waiting.unshift(...page.rows);
  if (window.scrollY < 160) takeWaiting();
  else tellWaiting();
}
async function renew() {
  const query = wanted(), mine = (list.asked = JSON.stringify(query));
  const page = await ask("decisions", query);
  if (list.asked !== mine) return;
  list.rows = page.rows;
  list.waiting = [];
  $("rows").replaceChildren(...page.rows.map((row) => line(row)));
  settle(page);
}
function settle(page) {
  list.more = page.more;
  $("more").hidden = page.more === null;
  $("more").textContent = page.ended ? "Search further back" : "Show older";
  $("nothing").hidden = list.rows.length > 0;
  const narrowed = Object.keys(wanted()).length > 0;
  $("nothing").textContent = page.ended ? "Nothing yet: this is how far the search came." : narrowed ? "Nothing matches these filters." : "No decisions yet. They appear here as requests are answered.";
  tellFound();
  tellWaiting();
  // Told aloud when somebody asked, not at every decision that comes.
  $("said").textContent = $("found").textContent || $("nothing").textContent;
}
function tellFound() {
  $("found").textContent = list.rows.length ? `${list.rows.length.toLocaleString()} shown${list.more === null ? "" : ", more below"}` : "";
  $("search-note").textContent = !state.audit.texts && $("filters").elements.text.value ? "Words are not kept here (audit.texts), so the search finds request ids alone." : "";
}
async function older() {
  $("more").disabled = true;
  try {
    const page = await ask("decisions", { ...wanted(), before: list.more });
    const lines = page.rows.map((row) => line(row));
    list.rows.push(...page.rows);
    $("rows").append(...lines);
    settle(page);
    if (lines.length) lines[0].querySelector("a").focus();
  } catch (error) { trouble(error); } finally { $("more").disabled = false; }
}
function takeWaiting() {
  const fresh = list.waiting.splice(0);
  list.rows.unshift(...fresh);
  $("rows").prepend(...fresh.map((row) => line(row, true)));
  if (list.rows.length > MOST) {
    list.rows.length = MOST;
    while ($("rows").children.length > MOST) $("rows").lastElementChild.remove();
    list.more = list.rows[MOST - 1].id;
    $("more").hidden = false;
  }
  if (fresh.length) { $("nothing").hidden = true; tellFound(); }
  tellWaiting();
}
function tellWaiting() {
  $("fresh").hidden = !list.waiting.length;
  $("fresh").textContent = `Show ${count(list.waiting.length, "new decision")}`;
}
function badge(action, decision) {
  const would = decision && decision !== action && action === "pass" && ACTIONS[decision];
  return [el("span", { class: `badge ${action}` }, ACTIONS[action] || action), would ? el("span", { class: "step" }, `would be ${would}`) : null];
}
function line(row, fresh) {
  const cell = (name, label, ...children) => el("td", { role: "cell", class: name, "data-label": label }, ...children);
  const blamed = row.blamed, why = blamed ? [el("span", { class: "harm" }, two(blamed.score)), " ", blamed.detector, row.categories.length ? `, ${spaced(row.categories)}` : ""]
    : row.score === null ? "no check" : [two(row.score)];
  const link = el("a", { href: `#/decisions/${row.id}` }, clock(row.time), unseen(`, open this decision: ${ACTIONS[row.action] || row.action}`));
  const asked = row.excerpt ? el("span", { class: "words" }, row.excerpt) : el("code", { class: "soft" }, row.asked.slice(0, 10));
  return el("tr", { role: "row", class: fresh ? "fresh-row" : "", onclick: () => { if (!String(getSelection())) location.hash = `#/decisions/${row.id}`; } },
    cell("when", "", link),
    cell("what", "", badge(row.action, row.decision), row.step !== "answer" ? el("span", { class: "step" }, row.step) : null),
    cell("asked", "", row.pictures ? el("span", { class: "pics", title: count(row.pictures, "picture") }, `▣ ${row.pictures}`, unseen(` ${row.pictures === 1 ? "picture" : "pictures"}. `)) : null, asked),
    cell("why", "", ...[why].flat()),
    cell("policy", "Policy", el("span", { title: row.policy }, byPolicy(row.policy))),
    cell("key", "Key", row.key ? el("span", { title: row.key }, row.key) : el("span", { class: "soft" }, "–")),
    cell("route", "Route", el("span", { title: row.route }, row.route.replace(/^\/v1\//, ""))),
    cell("took number", "Took", duration(row.ms)));
}
async function fillFilters() {
  const names = await ask("names");
  list.facets = Date.now();
  const form = $("filters").elements;
  for (const name of ["step", "policy", "key", "route"]) {
    const box = form[name], chosen = box.value;
    const values = names[name].map((value) => (name === "key" && value === "" ? "(none)" : value));
    box.replaceChildren(el("option", { value: "" }, "All"), ...values.map((value) => el("option", { value }, value)));
    box.value = values.includes(chosen) ? chosen : "";
    box.parentElement.hidden = name === "key" && values.length < 2 && values[0] === "(none)";
  }
  form.text.placeholder = state.audit.texts ? "Words, or a request id" : "Request id";
}
function setLive(live) {
  list.live = live;
  $("live").setAttribute("aria-pressed", String(live));
  $("live-word").textContent = live ? "Live" : "Paused";
  if (live) { takeWaiting(); tick(); }
}
function tellNoAudit() {
  $("found").textContent = "";
  $("no-audit").replaceChildren(
    el("h2", {}, "Decisions are not kept here"),
    el("p", {}, "This sidecar has no audit. Give it a file in the settings, and start it again:"),
    el("pre", { tabindex: 0, "aria-label": "Settings that turn the audit on" }, "audit:\n  path: audit.db\n  texts: true       # left out: hashes and scores, nobody's words\n  pictures: true    # left out: no small copies of pictures\n  days: 30"),
    el("p", { class: "soft" }, "The playground, the policies and the last hour's load work without it."));
}

// -- one decision ---------------------------------------------------------------------

let opener = null;
async function openDecision(id) {
  const sheet = $("sheet");
  if (!sheet.open) { opener = document.activeElement; sheet.showModal(); }
  const place = list.rows.findIndex((row) => row.id === id);
  $("newer").disabled = place <= 0;
  $("older").disabled = place < 0 || place >= list.rows.length - 1;
  $("newer").onclick = () => go(list.rows[place - 1].id);
  $("older").onclick = () => go(list.rows[place + 1].id);
  $("sheet-title").textContent = "Decision";
  try {
    const row = await ask(`decisions/${id}`);
    if (!state || location.hash !== `#/decisions/${id}`) return;
    $("sheet-title").replaceChildren();
    fill($("sheet-title"), {}, [badge(row.action, row.decision), " ", clock(row.time, true)]);
    $("sheet-body").replaceChildren(...decision(row));
    $("sheet-body").scrollTop = 0;
  } catch (error) {
    $("sheet-body").replaceChildren(el("p", { class: "trouble" }, `It cannot be shown: ${error.message}.`));
  }
}
function go(id) { location.replace(`#/decisions/${id}`); }
function leaveSheet() {
  if (location.hash.startsWith("#/decisions/")) history.replaceState(null, "", "#/decisions");
  const row = opener && opener.isConnected ? opener : $("main");
  row.focus();
}
function decision(row) {
  const detail = row.detail, kept = detail.answer.text !== undefined;
  return [
    el("dl", { class: "facts" }, ...facts(row)),
    section("Why", ...reasons(row)),
    section("Request", ...request(row)),
    section("Answer", ...answers(row, kept)),
    section("Times and tokens", costs(row)),
    row.asked ? section("Hashes", hashes(row)) : null,
  ].filter(Boolean);
}
const section = (title, ...children) => el("section", { class: "part" }, el("h3", {}, title), ...children);
function facts(row) {
  const told = [["Policy", row.policy], ["Key", row.key], ["Route", row.route], ["Request", row.request], ["Took", `${duration(row.ms)}, of it detectors ${duration(row.guard_ms)}`]];
  if (row.choice) told.push(["Choice", String(row.choice)]);
  return told.filter(([, value]) => value).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
}
function summary(row) {
  const blamed = row.trail.find((finding) => finding.action !== "pass");
  const said = blamed && (blamed.error ? `${blamed.detector} failed` : `${blamed.detector} gave ${two(blamed.score)}${typeof blamed.threshold === "number" ? ` where the limit is ${two(blamed.threshold)}` : ""}`);
  const about = row.categories && row.categories.length ? ` (${spaced(row.categories)})` : "";
  if (row.action === "pass" && row.decision !== "pass") return `Only recorded: ${said}${about}; an enforcing policy would have ${row.decision === "block" ? "refused" : "mended"} it.`;
  if (row.action === "pass") return row.step === "unfinished" ? "It broke off before it was decided." : row.trail.length ? "Every check passed; the answer is the model's own, untouched." : "Nothing was checked.";
  const where = blamed && blamed.stage === "input" ? "The request was flagged" : "The draft was flagged";
  if (row.action === "repair") return `${where}: ${said}${about}. The step ${row.step} made an answer that passes the same checks${row.detail.closed ? ", without a look at the picture" : ""}.`;
  const end = { input: "so the model was not asked.", cut: "and the answer was cut.", output: "and no step made an answer that passes, so it was refused." };
  return `${where}: ${said || "nobody knows why"}${about}, ${end[row.step] || "so it was refused."}`;
}
// The order in which it happened, as far as calls and findings tell it.
function stages(row) {
  const found = new Map(), add = (kind, stage) => {
    const name = `${kind} ${stage}`;
    if (!found.has(name)) found.set(name, { name, kind, stage, findings: [], calls: [] });
    return found.get(name);
  };
  for (const finding of row.trail) add("checks", finding.stage || "output").findings.push(finding);
  for (const call of row.detail.calls) add("model", call.stage).calls.push(call);
  const part = (stage) => PART[stage] || stage, first = ["input", "draft", "stream", "output"];
  const order = [...new Set([...first, ...row.trail.map((f) => part(f.stage)), ...row.detail.calls.map((c) => part(c.stage))])];
  const inner = ["model caption", "checks description", "model plan", "model closed", "model helpful"];
  const rank = (one) => order.indexOf(part(one.stage)) * 10 + (inner.includes(one.name) ? inner.indexOf(one.name) : one.kind === "model" ? 6 : 7);
  return [...found.values()].sort((a, b) => rank(a) - rank(b));
}
const time = (stage) => stage.kind === "model" ? stage.calls.reduce((sum, call) => sum + (call.ms || 0), 0) : Math.max(0, ...stage.findings.map((f) => f.ms || 0));
function reasons(row) {
  return [el("p", { class: "lead" }, summary(row)),
    el("ol", { class: "trail" }, stages(row).map((stage) => el("li", { class: worst(stage) },
      el("p", { class: "stage" }, el("b", {}, excused(stage) ? `The step ${stage.stage} made no answer` : nameStage(stage.name)), el("span", { class: "soft" }, stage.kind === "model" ? ` ${stage.calls.length > 1 ? `${stage.calls.length} calls, ` : ""}${duration(time(stage))}` : "")),
      stage.findings.map(score))))];
}
// A step that failed or does not apply leaves nothing but its reason, under its own name.
const excused = (stage) => stage.kind === "checks" && stage.findings.every((f) => f.detector === stage.stage && f.threshold === undefined);
function worst(stage) {
  if (excused(stage)) return "model";
  const actions = stage.findings.map((finding) => finding.action);
  return stage.kind === "model" ? "model" : actions.includes("block") ? "block" : actions.includes("repair") ? "repair" : "pass";
}
function score(finding) {
  const cut = finding.label === "cut" && finding.reason, categories = Object.entries(finding.categories || {}).filter(([, value]) => value >= 0.05).sort((a, b) => b[1] - a[1]).slice(0, 6);
  const over = finding.action !== "pass";
  if (finding.error || finding.label === "tried" || (finding.threshold === undefined && finding.reason && !cut)) {
    return el("p", { class: "score words" }, el("span", { class: "detector" }, finding.detector), el("span", { class: over && finding.error ? "harm" : "soft" }, finding.error ? `failed: ${finding.error}` : finding.reason || finding.label));
  }
  return el("div", { class: "score" },
    el("span", { class: "detector" }, finding.detector, cut ? el("span", { class: "soft" }, ` (cut ${finding.reason})`) : null),
    bar(finding.score, finding.threshold, over),
    el("span", { class: over ? "value harm" : "value" }, two(finding.score), unseen(typeof finding.threshold === "number" ? `, threshold ${two(finding.threshold)}, ${over ? "flagged" : "passed"}` : "")),
    el("span", { class: "ms soft" }, duration(finding.ms)),
    categories.length ? el("ul", { class: "chips", "aria-label": "Categories" }, categories.map(([name, value]) => el("li", {}, name.replaceAll("_", " "), " ", el("b", {}, two(value))))) : null,
    finding.reason && !cut ? el("p", { class: "soft reason" }, finding.reason) : null);
}
function bar(value, threshold, over) {
  const width = Math.max(0, Math.min(1, value)) * 100;
  const tick = typeof threshold === "number" ? draw("line", { x1: threshold * 100, x2: threshold * 100, y1: 0, y2: 10, class: "tick" }) : null;
  return draw("svg", { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    draw("rect", { x: 0, y: 3, width: 100, height: 4, rx: 1, class: "track" }),
    draw("rect", { x: 0, y: 3, width, height: 4, rx: 1, class: over ? "over" : "under" }), tick);
}
function request(row) {
  const detail = row.detail, parts = [];
  if (detail.request) {
    parts.push(el("ul", { class: "talk" }, detail.request.map((message) => el("li", { class: message.role === "user" ? "user" : "" }, el("span", { class: "role" }, message.role), el("p", { class: "text" }, message.text || el("span", { class: "soft" }, "no words"))))));
  } else if (row.asked) parts.push(el("p", { class: "soft" }, "Words are not kept here (audit.texts). The hash below tells whether a text you have is this one."));
  const small = (detail.thumbnails || []).filter((uri) => uri.startsWith("data:image/jpeg;base64,"));
  if (small.length) parts.push(el("ul", { class: "pictures" }, small.map((uri, i) => el("li", {}, picture(uri, i, row)))));
  const total = row.pictures ? row.pictures.length : 0;
  if (total > small.length) parts.push(el("p", { class: "soft" }, `${count(total - small.length, small.length ? "more picture" : "picture")}, of which ${small.length ? "a hash is" : "only a hash is"} kept${state.audit && !state.audit.pictures ? " (audit.pictures)" : ""}.`));
  const seen = detail.coverage;
  if (seen && (seen.images_total || seen.opaque)) parts.push(el("p", { class: "soft" }, `Checks looked at ${seen.images} of ${count(seen.images_total, "picture")}${seen.opaque ? `; ${count(seen.opaque, "part")} nobody can read` : ""}.`));
  return parts.length ? parts : [el("p", { class: "soft" }, "A question without a picture.")];
}
function picture(uri, i, row) {
  const image = el("img", { src: uri, alt: `Picture ${i + 1} of the request` });
  if (row.decision === "pass") return image;
  const veil = el("button", { class: "veil", "aria-pressed": "false", onclick: () => {
    const shown = veil.getAttribute("aria-pressed") !== "true";
    veil.setAttribute("aria-pressed", String(shown));
    word.textContent = shown ? "Hide" : "Show picture";
  } });
  const word = el("span", {}, "Show picture");
  veil.append(image, word);
  return veil;
}

// -- draft and answer -----------------------------------------------------------------

function answers(row, kept) {
  const detail = row.detail, draft = detail.calls.find((call) => call.stage === "draft");
  if (!kept) {
    const told = [["Answer", detail.answer], ...detail.calls.map((call) => [nameStage(`model ${call.stage}`), call.reply])];
    return [el("ul", { class: "plain-list" }, told.map(([name, said]) => el("li", {}, name, ": ", count(said.chars, "character")))), el("p", { class: "soft" }, "Words are not kept here (audit.texts).")];
  }
  const text = detail.answer.text, first = draft && draft.reply.text, body = el("div", { class: "texts" });
  const others = detail.calls.filter((call) => call.stage !== "draft" && call.reply.text && call.reply.text !== text);
  const parts = [];
  if (!draft) parts.push(el("p", { class: "soft" }, "The model was not asked."), quote(text));
  else if (first === text) parts.push(el("p", { class: "soft" }, "The draft, unchanged."), quote(text));
  else {
    const views = { changes: ["Changes", () => compare(first, text)], draft: ["Draft", () => marked(first, row.trail)], answer: ["Answer", () => quote(text)] };
    parts.push(segments("What to show", views, body), body);
  }
  parts.push(bySentence(row, first || text, draft ? "draft" : "answer"));
  if (others.length) parts.push(el("details", {}, el("summary", {}, `What the model said on the way (${others.length})`), others.map((call) => [el("h4", {}, nameStage(`model ${call.stage}`)), quote(call.reply.text)])));
  return parts;
}
const quote = (text) => el("p", { class: "text said" }, text || el("span", { class: "soft" }, "nothing"));
let groups = 0;
function segments(label, views, body) {
  const name = `view-${++groups}`;
  const show = (key) => body.replaceChildren(views[key][1]());
  show(Object.keys(views)[0]);
  return el("fieldset", { class: "segments" }, el("legend", { class: "unseen" }, label),
    Object.entries(views).map(([key, [title]], i) => el("label", {}, el("input", { type: "radio", name, value: key, checked: i === 0, onchange: () => show(key) }), title)));
}
// Sentences that a step cut out of the draft, where the trail tells their places.
function marked(text, trail) {
  const cuts = trail.filter((f) => f.label === "cut").map((f) => /^(\d+):(\d+)/.exec(f.reason || "")).filter(Boolean).map((m) => [Number(m[1]), Number(m[2])]).sort((a, b) => a[0] - b[0]);
  // Places count characters of Python, which are whole code points.
  const points = Array.from(text), node = el("p", { class: "text said" });
  let at = 0;
  for (const [start, end] of cuts) {
    if (start < at) continue;
    node.append(points.slice(at, start).join(""), el("del", {}, points.slice(start, end).join("")));
    at = end;
  }
  node.append(points.slice(at).join(""));
  return node;
}
function compare(draft, answer) {
  const parts = diff(tokens(draft), tokens(answer));
  // Two texts that share little are easier to read side by side.
  const shared = parts.filter(([kind]) => kind === 0).reduce((sum, [, text]) => sum + text.trim().length, 0);
  if (shared < 0.25 * Math.min(draft.length, answer.length)) {
    return el("div", { class: "sides" }, el("div", {}, el("h4", {}, "Draft"), el("p", { class: "text said" }, el("del", {}, draft))), el("div", {}, el("h4", {}, "Answer"), el("p", { class: "text said" }, el("ins", {}, answer))));
  }
  return el("p", { class: "text said" }, parts.map(([kind, text]) => kind === 0 ? text : el(kind < 0 ? "del" : "ins", {}, text)));
}
const tokens = (text) => text.match(/\s+|[\p{L}\p{N}\p{M}_'’]+|[^\s\p{L}\p{N}\p{M}_'’]/gu) || [];
// Parts in order: [-1, removed], [0, kept], [1, added]; the longest common subsequence of words.
function diff(a, b) {
  let head = 0, tail = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head++;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  const inner = lcs(a.slice(head, a.length - tail), b.slice(head, b.length - tail));
  return tidy([[0, a.slice(0, head).join("")], ...inner, [0, a.slice(a.length - tail).join("")]]);
}
function lcs(a, b) {
  const n = a.length, m = b.length;
  // Too much to compare word by word: all of it was replaced.
  if (n * m > 4e6) return [[-1, a.join("")], [1, b.join("")]];
  const width = m + 1, best = new Uint16Array((n + 1) * width), parts = [];
  for (let i = n - 1; i >= 0; i--) for (let j = m - 1; j >= 0; j--) best[i * width + j] = a[i] === b[j] ? best[(i + 1) * width + j + 1] + 1 : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
  let i = 0, j = 0;
  while (i < n || j < m) {
    if (i < n && j < m && a[i] === b[j]) { parts.push([0, a[i]]); i++; j++; }
    else if (j >= m || (i < n && best[(i + 1) * width + j] >= best[i * width + j + 1])) parts.push([-1, a[i++]]);
    else parts.push([1, b[j++]]);
  }
  return parts;
}
// Neighbours joined; fewer than three words that were kept between two changes belong to both.
function tidy(parts) {
  const runs = [];
  for (const [kind, text] of parts) {
    const last = runs[runs.length - 1];
    if (last && last[0] === kind) last[1] += text;
    else if (text) runs.push([kind, text]);
  }
  const joined = [];
  let gone = "", come = "";
  const flush = () => { if (gone) joined.push([-1, gone]); if (come) joined.push([1, come]); gone = come = ""; };
  runs.forEach(([kind, text], i) => {
    const inside = kind === 0 && i > 0 && i + 1 < runs.length && (text.match(/[\p{L}\p{N}]+/gu) || []).length < 3;
    if (kind < 0 || inside) gone += text;
    if (kind > 0 || inside) come += text;
    if (kind === 0 && !inside) { flush(); joined.push([0, text]); }
  });
  flush();
  return joined;
}
function bySentence(row, text, what) {
  if (!text) return null;
  const place = el("div", { class: "sentences", "aria-live": "polite" });
  const question = row.detail.request ? row.detail.request.filter((m) => m.role === "user").map((m) => m.text).pop() || "" : "";
  const button = el("button", { class: "plain", onclick: async () => {
    button.disabled = true;
    place.replaceChildren(el("p", { class: "soft" }, "Scoring …"));
    try {
      const found = await ask("sentences", { policy: row.policy, text, question });
      place.replaceChildren(el("ol", {}, found.sentences.map((one) => el("li", { class: one.action }, bar(one.score, one.threshold, one.action !== "pass"), el("b", { class: one.action !== "pass" ? "harm" : "" }, two(one.score), unseen(` ${one.detector}: `)), el("span", { class: "text" }, one.text.trim())))));
      button.remove();
    } catch (error) {
      place.replaceChildren(el("p", { class: "trouble" }, `They cannot be scored: ${error.message}.`));
      button.disabled = false;
    }
  } }, `Score the ${what} by sentence`);
  return el("div", {}, el("p", {}, button), place);
}

// -- costs and hashes -------------------------------------------------------------------

function costs(row) {
  const all = stages(row), rest = { prompt: row.prompt, completion: row.completion };
  for (const call of row.detail.calls) for (const kind of ["prompt", "completion"]) rest[kind] -= call.stage === "draft" ? 0 : call.usage[kind];
  const used = (stage, kind) => stage.kind !== "model" ? null : stage.stage === "draft" ? Math.max(0, rest[kind]) : stage.calls.reduce((sum, call) => sum + call.usage[kind], 0);
  const timed = all.filter((stage) => time(stage) > 0), most = Math.max(row.ms, 1);
  const cell = (value) => el("td", { class: "number" }, value === null ? "" : value.toLocaleString());
  const length = (stage) => draw("svg", { class: "length", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" }, draw("rect", { x: 0, y: 0, width: Math.max(0.5, time(stage) / most * 100), height: 8, class: stage.kind }));
  return el("table", { class: "costs" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Stage"), el("th", { scope: "col", class: "lengths" }, unseen("Share")), el("th", { scope: "col", class: "number" }, "Time"), el("th", { scope: "col", class: "number" }, "Read"), el("th", { scope: "col", class: "number" }, "Written"))),
    el("tbody", {}, timed.map((stage) => el("tr", {}, el("th", { scope: "row" }, nameStage(stage.name)), el("td", { class: "lengths" }, length(stage)), el("td", { class: "number" }, duration(time(stage))), cell(used(stage, "prompt")), cell(used(stage, "completion")))),
      el("tr", { class: "total" }, el("th", { scope: "row" }, "Whole request"), el("td", { class: "lengths" }), el("td", { class: "number" }, duration(row.ms)), cell(row.prompt), cell(row.completion))));
}
function hashes(row) {
  const told = [["Request", row.asked], ...(row.pictures || []).map((hash, i) => [`Picture ${i + 1}`, hash]), ["Answer", row.detail.answer.sha256], ...row.detail.calls.map((call) => [nameStage(`model ${call.stage}`), call.reply.sha256])];
  return el("details", {}, el("summary", {}, `SHA-256 of request, pictures and texts (${told.length})`), el("dl", { class: "hashes" }, told.map(([name, hash]) => el("div", {}, el("dt", {}, name), el("dd", {}, el("code", {}, hash))))));
}

// -- playground -------------------------------------------------------------------------

let running = null, shownPicture = "";
function fillPolicies() {
  $("try-policy").replaceChildren(...state.policies.map((name) => el("option", { value: name }, name)));
  $("try-policy").value = state.policy;
  $("try-key-field").hidden = !state.key_needed;
}
async function fillModels() {
  if ($("models").children.length) return;
  const found = await ask("models").catch(() => ({}));
  const names = (Array.isArray(found.data) ? found.data : []).map((one) => String(one.id));
  $("models").replaceChildren(...names.map((value) => el("option", { value })));
  if (names.length && $("try-model").value === "default") $("try-model").value = names[0];
}
function dropPicture() {
  $("try-picture").value = "";
  if (shownPicture) URL.revokeObjectURL(shownPicture);
  shownPicture = "";
  $("preview").hidden = true;
  $("preview").querySelector("img").removeAttribute("src");
}
function choosePicture() {
  const file = $("try-picture").files[0];
  if (shownPicture) URL.revokeObjectURL(shownPicture);
  shownPicture = file ? URL.createObjectURL(file) : "";
  $("preview").hidden = !file;
  if (file) $("preview").querySelector("img").src = shownPicture;
}
const encode = (file) => new Promise((done, fail) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.onerror = () => fail(new Told("the picture cannot be read", 0));
  reader.readAsDataURL(file);
});
async function attempt(event) {
  event.preventDefault();
  if (running) return;
  running = new AbortController();
  const form = $("try").elements, file = $("try-picture").files[0], place = $("tried"), start = performance.now();
  const wait = el("span", {}, "0 s"), beat = setInterval(() => { wait.textContent = `${Math.round((performance.now() - start) / 1000)} s`; }, 500);
  place.setAttribute("aria-busy", "true");
  place.replaceChildren(el("p", { class: "empty working" }, "Asking … ", el("span", { "aria-hidden": "true" }, wait)));
  $("ask").disabled = true;
  $("stop").hidden = false;
  try {
    const body = { policy: form.policy.value, question: form.question.value, system: form.system.value, model: form.model.value || "default", max_tokens: Number(form.max_tokens.value) || 256, key: form.key.value };
    if (file) body.picture = await encode(file);
    const row = await ask("try", body, running.signal);
    row.categories = [...new Set(row.trail.filter((f) => f.action !== "pass").flatMap((f) => Object.entries(f.categories || {}).sort((a, b) => b[1] - a[1]).slice(0, 1).map(([name]) => name)))];
    row.detail.request = [{ role: "user", text: body.question }];
    place.replaceChildren(el("div", { class: "card result" }, el("h2", {}, badge(row.action, row.decision), " ", el("span", { class: "soft" }, STEPS[row.step] || row.step)),
      section("Answer", ...answers(row, true)), section("Why", ...reasons(row)), section("Times and tokens", costs(row))));
  } catch (error) {
    place.replaceChildren(error.name === "AbortError" ? el("p", { class: "empty" }, "Stopped.") : el("p", { class: "trouble" }, `No answer: ${error.message}.`));
  } finally {
    clearInterval(beat);
    running = null;
    place.setAttribute("aria-busy", "false");
    // On a phone it stands below the form.
    if (place.getBoundingClientRect().top > innerHeight - 80 || place.getBoundingClientRect().top < 0) place.scrollIntoView({ block: "start" });
    $("ask").disabled = false;
    $("stop").hidden = true;
  }
}

// -- policies ---------------------------------------------------------------------------

async function showPolicies() {
  const { policies } = await ask("policies");
  const show = (policy) => {
    for (const button of $("policy-names").querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.value === policy.name));
    const copy = el("button", { class: "plain", onclick: async () => { await navigator.clipboard.writeText(policy.yaml); copy.textContent = "Copied"; } }, "Copy");
    const users = policy.users.length ? `Used by ${policy.users.join(", ")}.` : policy.used ? "Used by everybody." : "A preset that nobody uses here.";
    $("policy").replaceChildren(el("div", { class: "head" }, el("h2", {}, policy.tag), navigator.clipboard ? copy : null), policy.description ? el("p", {}, policy.description) : null, el("p", { class: "soft" }, users, policy.used ? " Every strictness is a number here: the score that its detector's word stands for." : ""), el("pre", { tabindex: 0, "aria-label": `The policy ${policy.name} as YAML` }, yaml(policy.yaml)));
  };
  $("policy-names").replaceChildren(...policies.map((policy) => el("li", {}, el("button", { value: policy.name, onclick: () => show(policy) }, el("b", {}, policy.name), el("span", { class: "soft" }, policy.used ? "in use" : "preset")))));
  if (policies.length) show(policies[0]);
}
const yaml = (text) => text.split("\n").map((row, i) => {
  const parts = /^(\s*(?:- )?)([\w.-]+)(:)(.*)$/.exec(row), end = i ? "\n" : "";
  return parts ? [end, parts[1], el("span", { class: "name" }, parts[2]), parts[3], el("span", { class: /^ ?(null|\[\]|\{\}|'')?$/.test(parts[4]) ? "soft" : "" }, parts[4])] : [end, row];
});

// -- load -------------------------------------------------------------------------------

const span = () => Number(document.querySelector("#spans input:checked").value);
const KINDS = ["pass", "repair", "block", "refused", "failed", "gone", "none"];
async function showLoad() {
  const asked = span(), load = await ask(`load?seconds=${asked}`);
  if (asked !== span()) return;
  const totals = {};
  for (const point of load.points) for (const [kind, n] of Object.entries(point.decisions)) totals[kind] = (totals[kind] || 0) + n;
  const all = Object.values(totals).reduce((sum, n) => sum + n, 0), whole = load.stages.find((stage) => stage.stage === "whole");
  const share = (kind) => (all ? `${(100 * (totals[kind] || 0) / all).toFixed(1)} %` : "–");
  const tile = (name, value, kind) => el("li", { class: kind || "" }, el("p", { class: "soft" }, name), el("p", { class: "value" }, value));
  const counted = load.source === "memory" ? "Requests" : "Decisions";
  const parts = [el("ul", { class: "tiles" }, tile(counted, all.toLocaleString()), tile("Mended", share("repair"), totals.repair ? "repair" : ""), tile("Refused", share("block"), totals.block ? "block" : ""), tile("Median time", whole ? duration(whole.p50) : "–"), tile("95 % within", whole ? duration(whole.p95) : "–"), tile("In flight now", `${load.flying} of ${load.limit}`))];
  if (load.source === "memory" && asked > 3600) parts.push(el("p", { class: "card hint" }, "Without an audit (audit.path) only the last hour is known."));
  parts.push(figure(`${counted} over time`, KINDS.filter((kind) => totals[kind]).map((kind) => [kind, FATES[kind]]), columns(load), table(["Time", ...KINDS.filter((k) => totals[k]).map((k) => FATES[k])], load.points.map((point, i) => [at(load, i), ...KINDS.filter((k) => totals[k]).map((k) => point.decisions[k] || 0)]).filter((row) => row.slice(1).some(Boolean)))));
  parts.push(figure("Time by stage", [["p50", "half within"], ["p95", "95 % within"]], ranges(load.stages), table(["Stage", "p50", "p95", "Timed"], ordered(load.stages).map((s) => [nameStage(s.stage), duration(s.p50), duration(s.p95), s.n.toLocaleString()]))));
  if (load.source === "memory") parts.splice(parts.length - 1, 0, figure("Whole requests", [["p50", "half within"], ["p95", "95 % within"]], lines(load, ["p50", "p95"], duration)), figure("Most in flight", [["peak", `of ${load.limit}`]], lines(load, ["peak"], (n) => (Number.isInteger(n) ? String(n) : ""))));
  parts.push(el("p", { class: "soft small" }, load.source === "memory" ? "From memory, since the sidecar began; times within 5 %." : `From the audit: decided choices alone; times by stage from ${count(load.sampled, "decision")}, evenly spread.`));
  $("charts").replaceChildren(...parts);
}
const at = (load, i) => new Date((load.begun + i * load.step) * 1000).toLocaleString([], load.step * 60 > 86400 ? { day: "numeric", month: "short", hour: "2-digit" } : { hour: "2-digit", minute: "2-digit" });
function table(heads, rows) {
  if (!rows.length) return null;
  return el("details", {}, el("summary", {}, "As a table"), el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table" }, el("table", {}, el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))), el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, i) => el(i ? "td" : "th", i ? { class: "number" } : { scope: "row" }, String(cell)))))))));
}
function figure(title, legend, chart, more) {
  return el("figure", { class: more ? "card whole" : "card" }, el("figcaption", {}, el("h2", {}, title), el("ul", { class: "legend" }, legend.map(([kind, name]) => el("li", { class: kind }, name)))), chart, more);
}
const H = 200, LEFT = 60, BOTTOM = 24, TOP = 10;
// A round number at or above the greatest value.
function round(most) {
  const ten = 10 ** Math.floor(Math.log10(Math.max(most, 1e-9)));
  return [1, 2, 3, 4, 6, 8, 10].map((n) => n * ten).find((n) => n >= most) || most;
}
// As wide as its place, so that its words are as large as all others.
function frame(load, most, name, title, share) {
  const all = $("charts").clientWidth, W = Math.max(200, (share < 1 && all > 990 ? all * share - 10 : all) - 46);
  const top = round(most), y = (value) => H - BOTTOM - (value / top) * (H - BOTTOM - TOP), x = (i) => LEFT + (i / load.points.length) * (W - LEFT - 4);
  const grid = [0, 0.5, 1].map((part) => [draw("line", { x1: LEFT, x2: W, y1: y(part * top), y2: y(part * top), class: "grid" }), draw("text", { x: LEFT - 8, y: y(part * top) + 4, "text-anchor": "end" }, name(part * top))]);
  const times = (W < 300 ? [0, 1] : W < 420 ? [0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1]).map((part) => draw("text", { x: x(part * load.points.length), y: H - 6, "text-anchor": part === 0 ? "start" : part === 1 ? "end" : "middle" }, part === 1 ? "now" : at(load, part * load.points.length)));
  return { x, y, svg: (...marks) => draw("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title }, grid, times, marks) };
}
function columns(load) {
  const sums = load.points.map((point) => Object.values(point.decisions).reduce((sum, n) => sum + n, 0)), most = Math.max(1, ...sums);
  const { x, y, svg } = frame(load, most, (n) => (Number.isInteger(n) ? n.toLocaleString() : ""), `${sums.reduce((a, b) => a + b, 0)} in all, at most ${most} in one of ${sums.length} steps`, 1);
  const wide = x(1) - x(0);
  return svg(load.points.map((point, i) => {
    let base = 0;
    const told = KINDS.filter((kind) => point.decisions[kind]).map((kind) => `${FATES[kind]} ${point.decisions[kind]}`).join(", ");
    return draw("g", {}, told ? draw("title", {}, `${at(load, i)}: ${told}`) : null, KINDS.filter((kind) => point.decisions[kind]).map((kind) => {
      const from = base;
      base += point.decisions[kind];
      return draw("rect", { x: x(i) + wide * 0.12, width: wide * 0.76, y: y(base), height: Math.max(0.5, y(from) - y(base)), class: `fill ${kind}` });
    }));
  }));
}
function lines(load, kinds, name) {
  const most = Math.max(1e-9, ...load.points.flatMap((point) => kinds.map((kind) => point[kind] || 0)));
  const { x, y, svg } = frame(load, Math.max(most, kinds[0] === "peak" ? 2 : 0.1), name, `at most ${name(most)}`, 0.5);
  return svg(kinds.map((kind) => {
    const runs = [[]];
    load.points.forEach((point, i) => { if (typeof point[kind] === "number") runs[runs.length - 1].push([x(i + 0.5), y(point[kind]), point[kind], i]); else if (runs[runs.length - 1].length) runs.push([]); });
    return runs.filter((run) => run.length).map((run) => [run.length > 1 ? draw("polyline", { points: run.map(([a, b]) => `${a.toFixed(1)},${b.toFixed(1)}`).join(" "), class: `line ${kind}` }) : null,
      run.map(([a, b, value, i]) => draw("circle", { cx: a, cy: b, r: run.length > 1 ? 2 : 3, class: `point ${kind}` }, draw("title", {}, `${at(load, i)}: ${name(value)}`)))]);
  }));
}
const ORDER = ["whole", "first byte", ...Object.keys(STAGES)];
const ordered = (stages) => [...stages].sort((a, b) => (ORDER.indexOf(a.stage) + 99) % 99 - (ORDER.indexOf(b.stage) + 99) % 99);
// Each stage from its median to its 95th percentile, on a logarithmic axis.
function ranges(stages) {
  const rows = ordered(stages);
  if (!rows.length) return el("p", { class: "empty" }, "Nothing was timed yet.");
  const low = 10 ** Math.floor(Math.log10(Math.max(0.1, Math.min(...rows.map((s) => s.p50))))), high = 10 ** Math.ceil(Math.log10(Math.max(low * 10, ...rows.map((s) => s.p95))));
  const share = (ms) => 100 * Math.log(Math.max(ms, low) / low) / Math.log(high / low);
  return el("ul", { class: "ranges" }, rows.map((stage) => el("li", {}, el("span", {}, nameStage(stage.stage)),
    draw("svg", { viewBox: "0 0 100 12", preserveAspectRatio: "none", role: "img", "aria-label": `half within ${duration(stage.p50)}, 95 % within ${duration(stage.p95)}` },
      draw("line", { x1: 0, x2: 100, y1: 6, y2: 6, class: "grid" }), draw("line", { x1: share(stage.p50), x2: share(stage.p95), y1: 6, y2: 6, class: "reach" }),
      draw("line", { x1: share(stage.p50), x2: share(stage.p50), y1: 1, y2: 11, class: "mark p50" }), draw("line", { x1: share(stage.p95), x2: share(stage.p95), y1: 1, y2: 11, class: "mark p95" })),
    el("span", { class: "number" }, duration(stage.p50), el("span", { class: "soft" }, " – "), duration(stage.p95)))),
    el("li", { class: "axis", "aria-hidden": "true" }, el("span", {}), el("span", { class: "soft" }, el("span", {}, duration(low)), el("span", {}, duration(high))), el("span", {})));
}

// -- what is pressed --------------------------------------------------------------------

function listen() {
  $("login").addEventListener("submit", (event) => { event.preventDefault(); signIn($("key").value); });
  $("leave").addEventListener("click", signOut);
  window.addEventListener("hashchange", route);
  document.addEventListener("visibilitychange", () => { if (!document.hidden && state) tick(); });
  $("live").addEventListener("click", () => setLive(!list.live));
  $("fresh").addEventListener("click", () => { takeWaiting(); scrollTo(0, 0); });
  $("more").addEventListener("click", older);
  const filter = () => { for (const one of document.querySelectorAll(".range")) one.hidden = $("filters").elements.span.value !== "range"; renew().catch(trouble); };
  let typing = 0;
  $("filters").addEventListener("change", filter);
  $("filters").addEventListener("input", (event) => { if (event.target.name === "text") { clearTimeout(typing); typing = setTimeout(filter, 250); } });
  $("narrow").addEventListener("click", () => $("narrow").setAttribute("aria-expanded", String($("filters").classList.toggle("open"))));
  $("filters").addEventListener("reset", () => setTimeout(filter));
  $("filters").addEventListener("submit", (event) => { event.preventDefault(); filter(); });
  $("rows").addEventListener("keydown", (event) => {
    const by = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key], row = by && event.target.closest("tr")[by];
    if (row) { event.preventDefault(); row.querySelector("a").focus(); }
  });
  $("close").addEventListener("click", () => $("sheet").close());
  $("sheet").addEventListener("close", leaveSheet);
  $("sheet").addEventListener("click", (event) => { if (event.target === $("sheet")) $("sheet").close(); });
  $("try").addEventListener("submit", attempt);
  $("try-picture").addEventListener("change", choosePicture);
  $("no-picture").addEventListener("click", () => { dropPicture(); $("try-picture").focus(); });
  $("stop").addEventListener("click", () => running && running.abort());
  $("try").querySelector("details").addEventListener("toggle", fillModels);
  $("spans").addEventListener("change", () => tick(true));
}
listen();
if (sessionStorage.getItem(KEY)) signIn(sessionStorage.getItem(KEY));
else { $("gate").hidden = false; $("key").focus(); }
