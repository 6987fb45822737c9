// Schemas of an OpenAPI document: as trees to read, and as examples to start from.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

// The nodes of a text with `code` in it.
export function inline(text) {
  return (text || "").split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part));
}

// A text as paragraphs, one a line.
export function prose(text) {
  const lines = (text || "").split("\n").filter(Boolean);
  return element("div", {}, ...lines.map((line) => element("p", {}, ...inline(line))));
}

export class Schemas {
  constructor(components) {
    this.components = components;
  }

  resolve(schema) {
    if (!schema || !schema.$ref) return schema || {};
    const { $ref, ...others } = schema;
    return { ...this.components[this.nameOf(schema)], ...others };
  }

  nameOf(schema) {
    return schema && schema.$ref ? schema.$ref.split("/").pop() : "";
  }

  // What a value is, in a few words.
  label(schema) {
    const name = this.nameOf(schema);
    const found = this.resolve(schema);
    if (found.enum) return name || found.enum.join(" | ");
    if (found.type === "array") return `list of ${this.label(found.items)}`;
    if (name) return name;
    if (found.oneOf) return found.oneOf.map((one) => this.label(one)).join(" or ");
    if (found.type === "object" && found.additionalProperties) {
      return found.additionalProperties === true ? "object" : `map to ${this.label(found.additionalProperties)}`;
    }
    const type = [found.type || "anything"].flat().join(" or ");
    return found.format ? `${type} (${found.format})` : type;
  }

  // The schema whose properties a reader wants to see.
  inner(schema) {
    const found = this.resolve(schema);
    if (found.type === "array") return this.inner(found.items);
    if (found.additionalProperties && found.additionalProperties !== true) return this.inner(found.additionalProperties);
    return found;
  }

  tree(schema) {
    const found = this.inner(schema);
    if (!found.properties) return element("div", {}, found.enum ? prose(found.description) : "");
    const list = element("ul", { class: "tree" });
    for (const [name, property] of Object.entries(found.properties)) list.append(this.row(name, property));
    return list;
  }

  row(name, property) {
    const line = [
      element("code", {}, name), " ",
      element("span", { class: "quiet" }, this.label(property) + (property.readOnly ? ", set by the server" : "")),
    ];
    const text = element("span", {}, " ", ...inline(this.resolve(property).description));
    const inner = this.inner(property);
    if (!inner.properties && !inner.enum) return element("li", {}, ...line, text);
    const more = element("details", {}, element("summary", {}, ...line), text);
    // Made when it is opened: schemas may contain themselves.
    more.addEventListener("toggle", () => more.children.length < 3 && more.append(this.tree(property)));
    return element("li", {}, more);
  }

  // A value that has the schema, without what only the server sets.
  example(schema, depth = 0) {
    const found = this.resolve(schema);
    if (found.examples) return found.examples[0];
    if (found.enum) return found.enum[0];
    if (found.oneOf) return this.example(found.oneOf[0], depth);
    const type = [found.type].flat().pop();
    if (type === "array") return [];
    if (type === "integer" || type === "number") return 0;
    if (type === "boolean") return false;
    if (type === "string") return "";
    if (type !== "object") return null;
    const value = {};
    // Of fields that exclude each other the first is shown.
    const pairs = (found.allOf || []).map(({ not }) => not.required);
    const excluded = (name) => pairs.some((pair) => pair.includes(name) && pair.some((other) => other in value));
    for (const [name, property] of Object.entries(found.properties || {})) {
      if (!property.readOnly && depth < 2 && !excluded(name)) value[name] = this.example(property, depth + 1);
    }
    return value;
  }
}
