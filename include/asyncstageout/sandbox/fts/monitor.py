"""The page for people, as a real FTS has one: one job, its files, their states and reasons. Read only."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from asyncstageout.sandbox.fts.engine import Engine
from asyncstageout.sandbox.fts.records import wire_file, wire_job

PATH = "/fts3/ftsmon/"
_COLUMNS = [
    "file_id",
    "file_index",
    "file_state",
    "source_surl",
    "dest_surl",
    "reason",
    "filesize",
    "throughput",
    "retry",
    "start_time",
    "finish_time",
    "checksum",
    "recoverable",
]
_RECENT = 50

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Sandbox FTS</title>
<style>
:root { color-scheme: light dark; --line: #8884; --bad: #b3261e; --good: #1b7f3b; --busy: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --bad: #ff8a80; --good: #7ddc98; --busy: #ffc66b; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 75rem; padding: 0 1rem; }
h1 { font-size: 1.2rem; margin: 0 0 .5rem; } h1 a { color: inherit; text-decoration: none; }
code { font-size: .85em; overflow-wrap: anywhere; } .table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .4rem .7rem .4rem 0;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
.FINISHED { color: var(--good); } .FAILED, .FINISHEDDIRTY, .CANCELED { color: var(--bad); }
.ACTIVE, .READY { color: var(--busy); } .quiet { opacity: .75; }
</style></head><body>
<h1><a href="#/">Sandbox FTS</a></h1><main aria-live="polite">Loading</main>
<script>
const main = document.querySelector("main");
function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}
function table(heads, rows) {
  const box = element("div", null, "table"), made = element("table"), head = element("tr");
  heads.forEach(name => head.append(element("th", name)));
  made.append(head, ...rows.map(cells => {
    const row = element("tr");
    row.append(...cells);
    return row;
  }));
  box.append(made);
  return box;
}
function url(text) { const cell = element("td"); cell.append(element("code", text)); return cell; }
function bytes(size) {
  if (size === null) return "";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (size >= 1000 && unit < 4) { size /= 1000; unit += 1; }
  return (unit ? size.toFixed(1) : size) + " " + units[unit];
}
function showJob(job) {
  const counts = {};
  job.files.forEach(file => counts[file.file_state] = (counts[file.file_state] || 0) + 1);
  const title = element("p");
  title.append(element("strong", job.job_state, job.job_state), " ", element("code", job.job_id));
  const facts = element("p", `${job.source_se || "several"} to ${job.dest_se || "several"}, ` +
    `submitted ${job.submit_time} by ${job.user_dn} (${job.vo_name}), ` +
    Object.entries(counts).map(([state, n]) => `${n} ${state}`).join(", "), "quiet");
  const rows = job.files.map(file => [
    element("td", file.file_state, file.file_state), url(file.source_surl), url(file.dest_surl),
    element("td", bytes(file.filesize), "n"), element("td", file.retry, "n"),
    element("td", [file.start_time, file.finish_time].filter(Boolean).join(" to ")),
    element("td", file.reason || ""),
  ]);
  main.replaceChildren(title, facts);
  if (job.reason) main.append(element("p", job.reason));
  const heads = ["State", "Source", "Destination", "Size", "Retries", "Ran (UTC)", "Reason"];
  main.append(table(heads, rows));
}
function showJobs(jobs) {
  const rows = jobs.map(job => {
    const cell = element("td"), link = element("a");
    link.href = "#/job/" + job.job_id;
    link.append(element("code", job.job_id));
    cell.append(link);
    return [cell, element("td", job.job_state, job.job_state), element("td", job.files, "n"),
      element("td", job.source_se || "several"), element("td", job.dest_se || "several"),
      element("td", job.submit_time, "n")];
  });
  main.replaceChildren(jobs.length
    ? table(["Job", "State", "Files", "Source", "Destination", "Submitted (UTC)"], rows)
    : element("p", "No job yet."));
}
async function show() {
  const id = location.hash.match(/^#\\/job\\/([\\w-]+)/);
  try {
    const answer = await fetch(id ? "api/job/" + id[1] : "api/jobs");
    if (answer.status === 404) main.replaceChildren(element("p", "This FTS has no job " + id[1] + "."));
    else if (id) showJob(await answer.json());
    else showJobs(await answer.json());
  } catch (error) {
    main.replaceChildren(element("p", "The FTS does not answer."));
  }
}
addEventListener("hashchange", show);
setInterval(show, 3000);
show();
</script></body></html>
"""


def monitor(engine: Engine) -> Starlette:
    """Return the application; it must be served by the engine's own event loop."""

    async def page(_request: Request) -> Response:
        return HTMLResponse(_PAGE)

    async def to_page(_request: Request) -> Response:
        return RedirectResponse(PATH)

    async def recent(_request: Request) -> Response:
        jobs = list(engine.jobs.values())[: -_RECENT - 1 : -1]
        return JSONResponse([{**wire_job(job), "files": len(job.files)} for job in jobs])

    async def one(request: Request) -> Response:
        job_id = request.path_params["job_id"]
        if job := engine.jobs.get(job_id):
            files = [wire_file(job, file, _COLUMNS) for file in job.files]
            return JSONResponse({**wire_job(job), "files": files})
        archived = engine.archived(job_id)
        return JSONResponse(archived, status_code=200 if archived else 404)

    return Starlette(
        routes=[
            Route("/", to_page),
            Route(PATH, page),
            Route(f"{PATH}api/jobs", recent),
            Route(f"{PATH}api/job/{{job_id}}", one),
        ]
    )
