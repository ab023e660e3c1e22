// Makes the pages of AsyncStageOut comfortable: they are complete without it, but for actions.
// Colour mode and links inside Airflow, local times, refreshing, dialogs that call the REST API.

const root = document.documentElement;
const framed = window.parent !== window;

/** Airflow's document, if it is around this one. */
function around() {
  try {
    return framed ? window.parent.document : null;
  } catch {
    return null; // somebody else's page
  }
}

// --- inside Airflow ---------------------------------------------------------------------------------------

/** Airflow says its colour mode by a class of its root (next-themes), also when it is switched. */
function followMode(outer) {
  const follow = () => {
    root.dataset.mode = outer.documentElement.classList.contains("dark") ? "dark" : "light";
  };
  follow();
  new MutationObserver(follow).observe(outer.documentElement, { attributes: true, attributeFilter: ["class"] });
}

/** The frame may neither open windows nor leave itself: Airflow's own document does it. */
function followOutside(outer, link) {
  const copy = outer.createElement("a");
  copy.href = link.href;
  copy.target = link.target === "_blank" ? "_blank" : "";
  copy.rel = "noopener noreferrer";
  outer.body.append(copy);
  copy.click();
  copy.remove();
}

const outer = around();
if (outer) {
  root.dataset.framed = "";
  followMode(outer);
}

// --- times ------------------------------------------------------------------------------------------------

const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

function ago(seconds) {
  const far = Math.abs(seconds);
  if (far < 5) return "just now";
  const place = UNITS.findIndex(([length]) => far >= length);
  const [length, unit] = UNITS[place];
  const said = `${Math.floor(far / length)} ${unit}`;
  return seconds > 0 ? `${said} ago` : `in ${said}`;
}

function tellTimes(within = document) {
  for (const time of within.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    const local = at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "long" });
    time.title = `${time.dateTime.replace("T", " ").replace("Z", " UTC")}\n${local}`;
    const words = time.querySelector(".ago");
    if (words) words.textContent = ago((Date.now() - at) / 1000);
  }
}

// --- refreshing -------------------------------------------------------------------------------------------

const REFRESH_KEY = "stageout.refresh";

function isBusy() {
  const focused = document.activeElement;
  return (
    document.hidden ||
    document.querySelector("dialog[open]") ||
    (focused && focused.matches("input, textarea, select") && focused.id !== "refresh") ||
    String(document.getSelection() ?? "")
  );
}

/** Where the focus is, so that it can be found again in another edition of the page. */
function pathTo(element) {
  if (element.id) return `#${CSS.escape(element.id)}`;
  const parent = element.parentElement;
  if (!parent || element.matches("main")) return "main";
  return `${pathTo(parent)} > :nth-child(${[...parent.children].indexOf(element) + 1})`;
}

/** Replace the main part, and leave everything else as it is: scrolling, focus, what is open. */
async function refresh() {
  const answer = await fetch(location.href, { headers: { "X-Requested-With": "refresh" }, cache: "no-store" });
  if (!answer.ok || answer.redirected) throw new Error(`The page could not be refreshed (${answer.status}).`);
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
  const main = document.querySelector("main");
  if (!fresh) return;
  const focused = main.contains(document.activeElement) ? pathTo(document.activeElement) : null;
  const chosen = document.querySelector("#refresh")?.value;
  for (const open of main.querySelectorAll("details[open][id]")) {
    fresh.querySelector(`#${CSS.escape(open.id)}`)?.setAttribute("open", "");
  }
  const scrolled = [...main.querySelectorAll(".scroll, .needs ul")].map((one) => [one.scrollLeft, one.scrollTop]);
  main.replaceChildren(...fresh.childNodes);
  main.querySelectorAll(".scroll, .needs ul").forEach((one, place) => {
    [one.scrollLeft, one.scrollTop] = scrolled[place] ?? [0, 0];
  });
  if (focused) main.querySelector(focused)?.focus({ preventScroll: true });
  const select = document.querySelector("#refresh");
  if (select && chosen) select.value = chosen;
  tellTimes(main);
}

let timer = 0;
function keepFresh(seconds) {
  clearInterval(timer);
  if (!seconds) return;
  timer = setInterval(() => {
    if (!isBusy()) refresh().catch((error) => say(error.message));
  }, seconds * 1000);
}

function startRefreshing() {
  const select = document.querySelector("#refresh");
  if (!select) return;
  select.value = localStorage.getItem(REFRESH_KEY) ?? "0";
  keepFresh(Number(select.value));
}

// --- what is said -----------------------------------------------------------------------------------------

let silence = 0;
function say(words) {
  const said = document.querySelector("#said");
  said.textContent = words;
  clearTimeout(silence);
  silence = setTimeout(() => { said.textContent = ""; }, 8000);
}

async function copyAddress() {
  const address = (outer ?? document).location.href;
  try {
    await navigator.clipboard.writeText(address);
    say("The link to this view is copied.");
  } catch {
    window.prompt("The link to this view:", address); // no clipboard without TLS
  }
}

// --- actions ----------------------------------------------------------------------------------------------

/** The body that a form's fields make, with the types that the API wants. Nothing is sent for what is empty. */
function bodyOf(form) {
  const body = JSON.parse(form.dataset.body);
  for (const field of form.querySelectorAll("[data-kind]")) {
    const value = field.value.trim();
    if (field.dataset.kind === "yes") body[field.name] = field.checked;
    else if (!value) continue;
    else if (field.dataset.kind === "number") body[field.name] = Number(value);
    else if (field.dataset.kind === "lasting") body[field.name] = new Date(Date.now() + value * 1000).toISOString();
    else body[field.name] = value;
  }
  return body;
}

async function ask(form, body) {
  const answer = await fetch(form.dataset.action, {
    method: form.dataset.method,
    headers: { "Content-Type": "application/json", "X-Requested-With": "stageout" },
    body: JSON.stringify(body),
  });
  const told = await answer.json().catch(() => ({}));
  if (answer.ok) return told;
  const flaws = (told.errors ?? []).map((flaw) => `${flaw.pointer ?? flaw.parameter ?? ""} ${flaw.detail}`.trim());
  const error = new Error([told.detail ?? `The server said ${answer.status}.`, ...flaws].join(" "));
  error.files = told.files;
  throw error;
}

function tell(form, words, tone) {
  const outcome = form.querySelector(".outcome");
  outcome.className = `outcome t-${tone}`;
  outcome.textContent = words;
}

async function open(dialog) {
  const form = dialog.querySelector("form");
  tell(form, "", "note");
  delete form.dataset.expected;
  dialog.showModal();
  if (!("countsFirst" in form.dataset)) return;
  try {
    const told = await ask(form, { ...bodyOf(form), dry_run: true });
    tell(form, `It would do this now: ${told.sentence}.`, "note");
    form.dataset.expected = told.counts ? Object.values(told.counts).reduce((sum, count) => sum + count, 0) : told.files;
  } catch (error) {
    tell(form, error.message, "bad");
  }
}

async function send(form) {
  const button = form.querySelector("[type=submit]");
  button.disabled = true;
  try {
    const body = bodyOf(form);
    if (form.dataset.expected) body.expected_files = Number(form.dataset.expected);
    const told = await ask(form, body);
    form.closest("dialog").close();
    say(told.sentence ? `Done: ${told.sentence}.` : "Done.");
    await refresh();
  } catch (error) {
    // Said again, it is meant.
    if (error.files) form.dataset.expected = error.files;
    tell(form, error.message, "bad");
  } finally {
    button.disabled = false;
  }
}

// --- one ear for all --------------------------------------------------------------------------------------

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-opens]");
  if (opener) open(document.getElementById(opener.dataset.opens));
  if (event.target.closest("[data-closes]")) event.target.closest("dialog").close();
  if (event.target.closest("[data-copies-address]")) copyAddress();
  const link = event.target.closest("a[data-top], a[target=_blank]");
  if (link && outer && !event.ctrlKey && !event.metaKey && event.button === 0) {
    event.preventDefault();
    followOutside(outer, link);
  }
});

document.addEventListener("submit", (event) => {
  if (!("action" in event.target.dataset)) return;
  event.preventDefault();
  send(event.target);
});

document.addEventListener("change", (event) => {
  if (event.target.id === "refresh") {
    localStorage.setItem(REFRESH_KEY, event.target.value);
    keepFresh(Number(event.target.value));
  } else if (event.target.matches("[data-submits]")) {
    event.target.form.requestSubmit();
  } else if (event.target.closest("form[data-counts-first]")) {
    delete event.target.form.dataset.expected;
  }
});

tellTimes();
setInterval(tellTimes, 30000);
startRefreshing();
