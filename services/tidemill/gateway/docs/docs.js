// The page of the OpenAPI document: every operation with its parameters and schemas, and a form to call it.

import { element, inline, prose, Schemas } from "/docs/schema.js";

const MOST_SHOWN = 200000;
const VERBS = ["get", "post", "put", "patch", "delete"];

const response = await fetch("/openapi.json");
const api = await response.json();
const schemas = new Schemas(api.components.schemas);

document.getElementById("version").textContent = api.info.version;
const main = document.getElementById("operations");
const index = document.getElementById("index");
main.replaceChildren(prose(api.info.description));

const shown = [];
for (const { name: tag } of api.tags) {
  const entries = [];
  const links = [];
  for (const [path, item] of Object.entries(api.paths)) {
    for (const verb of VERBS.filter((verb) => item[verb] && item[verb].tags.includes(tag))) {
      const entry = operation(verb, path, item[verb]);
      const link = element("a", { href: `#${item[verb].operationId}` }, item[verb].operationId);
      shown.push({ entry, link, text: `${verb} ${path} ${item[verb].operationId} ${item[verb].summary}`.toLowerCase() });
      entries.push(entry);
      links.push(link);
    }
  }
  main.append(element("section", {}, element("h2", {}, tag), ...entries));
  index.append(element("section", {}, element("h2", {}, tag), ...links));
}

document.getElementById("search").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(" ").filter(Boolean);
  for (const { entry, link, text } of shown) entry.hidden = link.hidden = !words.every((word) => text.includes(word));
  for (const section of document.querySelectorAll("section")) {
    section.hidden = !section.querySelector("a:not([hidden]), .operation:not([hidden])");
  }
});

window.addEventListener("hashchange", reveal);
reveal();

function reveal() {
  const entry = document.getElementById(location.hash.slice(1));
  if (entry && entry.matches("details")) {
    entry.open = true;
    entry.scrollIntoView();
  }
}

function operation(verb, path, described) {
  const body = element("div");
  const entry = element(
    "details", { class: "operation", id: described.operationId },
    element(
      "summary", {},
      element("span", { class: `verb ${verb}` }, verb.toUpperCase()),
      element("span", { class: "path" }, path),
      element("span", { class: "summary" }, described.summary),
    ),
    body,
  );
  entry.addEventListener("toggle", () => {
    if (entry.open && !body.hasChildNodes()) body.append(...details(verb, path, described));
  });
  return entry;
}

function details(verb, path, described) {
  const parts = [prose(described.description)];
  if (described.parameters.length) {
    const rows = described.parameters.map((parameter) => {
      const kind = element("div", { class: "quiet" }, `${parameter.in}, ${schemas.label(parameter.schema)}`);
      const name = element("td", {}, element("code", {}, parameter.name), kind);
      return element("tr", {}, name, element("td", {}, prose(parameter.description)));
    });
    parts.push(element("h3", {}, "Parameters"), element("table", {}, element("tbody", {}, ...rows)));
  }
  if (described.requestBody) {
    parts.push(element("h3", {}, "Body"));
    for (const [media, content] of Object.entries(described.requestBody.content)) parts.push(...shape(media, content));
  }
  parts.push(element("h3", {}, "Responses"));
  for (const [status, answer] of Object.entries(described.responses)) {
    parts.push(element("p", {}, element("code", {}, status), " ", ...inline(answer.description)));
    const [first] = Object.entries(answer.content || {});
    if (first) parts.push(...shape(Object.keys(answer.content).join(", "), first[1]));
  }
  parts.push(form(verb, path, described));
  return parts;
}

function shape(media, content) {
  return [element("div", { class: "quiet" }, `${media}: ${schemas.label(content.schema)}`), schemas.tree(content.schema)];
}

function form(verb, path, described) {
  const inputs = described.parameters.map((parameter) => ({ parameter, input: field(parameter) }));
  const [media, content] = Object.entries((described.requestBody || { content: {} }).content)[0] || [];
  const json = media === "application/json";
  let sent = null;
  if (json) {
    const example = JSON.stringify(schemas.example(content.schema), null, 2);
    sent = element("textarea", { spellcheck: "false", "aria-label": "Body" }, example);
  } else if (media) sent = element("input", { type: "file", "aria-label": "Body" });
  const command = element("pre", { hidden: true });
  const output = element("pre", { hidden: true, "aria-live": "polite" });
  let running = null;

  const request = () => {
    let url = path;
    const query = new URLSearchParams();
    const headers = {};
    for (const { parameter, input } of inputs) {
      if (input.value === "") continue;
      if (parameter.in === "path") url = url.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
      else if (parameter.in === "query") query.set(parameter.name, input.value);
      else headers[parameter.name] = input.value;
    }
    if (query.size) url += `?${query}`;
    if (media) headers["Content-Type"] = media;
    const body = json ? sent.value : sent && sent.files[0];
    return { url, options: { method: verb.toUpperCase(), headers, body: body || undefined } };
  };

  const send = async (event) => {
    event.preventDefault();
    running = new AbortController();
    stop.hidden = false;
    const { url, options } = request();
    command.hidden = output.hidden = false;
    command.textContent = curl(url, options, json);
    output.textContent = "…";
    try {
      await show(await fetch(url, { ...options, signal: running.signal }), output);
    } catch (error) {
      output.append(`\n${error.name === "AbortError" ? "stopped" : error}`);
    } finally {
      stop.hidden = true;
    }
  };
  const stop = element("button", { type: "button", hidden: true, onclick: () => running.abort() }, "Stop");
  const labels = inputs.map(({ parameter, input }) => element("label", {}, element("code", {}, parameter.name), input));
  return element(
    "form", { class: "try", onsubmit: send },
    element("h3", {}, "Try it"), ...labels, sent,
    element("div", { class: "actions" }, element("button", { type: "submit" }, "Send"), stop),
    command, output,
  );
}

function field(parameter) {
  const schema = schemas.resolve(parameter.schema);
  const choices = schema.enum || (schema.type === "boolean" ? ["true", "false"] : null);
  if (choices) return element("select", {}, ...["", ...choices].map((choice) => element("option", {}, choice)));
  return element("input", { type: "text", required: parameter.required === true });
}

// The response as it comes, so that streams can be watched.
async function show(answer, output) {
  const headers = [...answer.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
  output.textContent = `${answer.status} ${answer.statusText}\n${headers}\n\n`;
  const head = output.textContent;
  const type = answer.headers.get("content-type") || "";
  if (type.includes("octet-stream")) {
    const blob = await answer.blob();
    const link = element("a", { href: URL.createObjectURL(blob), download: "bytes" }, `save ${blob.size} bytes`);
    output.append(link);
    return;
  }
  let text = "";
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (text.length < MOST_SHOWN) text += part.value;
    output.textContent = head + text;
  }
  if (type.includes("json") && !type.includes("ndjson") && text.length < MOST_SHOWN) {
    output.textContent = head + JSON.stringify(JSON.parse(text), null, 2);
  }
}

function curl(url, options, json) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const parts = ["curl", "-X", options.method, quoted(location.origin + url)];
  for (const [name, value] of Object.entries(options.headers)) parts.push("-H", quoted(`${name}: ${value}`));
  if (options.body) parts.push(json ? `-d ${quoted(options.body)}` : `--data-binary @${quoted(options.body.name)}`);
  return parts.join(" ");
}
