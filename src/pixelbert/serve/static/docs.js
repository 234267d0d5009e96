// The API's description, from openapi.json: what is sent, what comes back, and a command to try.

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

const response = await fetch("/api/v1/openapi.json");
const api = await response.json();
const resolve = (schema) => (schema?.$ref ? api.components.schemas[schema.$ref.split("/").at(-1)] : schema ?? {});
const plain = (schema) => schema.anyOf?.find((one) => one.type !== "null") ?? schema;

function kind(schema) {
  const { type, contentMediaType, format, items } = plain(schema);
  if (contentMediaType || format === "binary") return "file";
  return type === "array" ? `${kind(items)}, repeated` : type;
}

/** What a value of a schema looks like. */
function sample(given) {
  const schema = plain(resolve(given));
  const value = { string: "…", number: 0.5, integer: 1, boolean: true }[schema.type];
  if (schema.type === "array") return [sample(schema.items)];
  if (!schema.properties) return schema.type === "object" ? {} : value;
  return Object.fromEntries(Object.entries(schema.properties).map(([name, one]) => [name, sample(one)]));
}

/** JSON with short lists on one line. */
function written(value) {
  let text = JSON.stringify(value, null, 2);
  for (let i = 0; i < 2; i++) text = text.replace(/\[\s+([^{}]{1,30}?)\s+\]/g, "[$1]");
  return text;
}

function command(path, method, fields) {
  if (method === "get") {
    const query = fields.filter((field) => field.required && !path.includes(`{${field.name}}`));
    const given = query.map((field) => ` --data-urlencode '${field.name}=a dog on a beach'`).join("");
    return `curl${given ? " -G" : ""}${given} ${location.origin}${path}`;
  }
  const given = fields.filter((field) => field.required).map((field) => kind(field.schema) === "file"
    ? ` -F ${field.name}=@photo.jpg`
    : ` -F '${field.name}=${path.endsWith("fill-mask") ? "a [MASK] on a beach" : "a dog on a beach"}'`);
  return `curl${given.join("")} ${location.origin}${path}`;
}

function table(fields) {
  const line = (tag, ...cells) => make("tr", {}, ...cells.map((cell) => make(tag, {}, cell)));
  return make("div", { className: "wide" }, make("table", {}, line("th", "field", "type", "", "meaning"),
    ...fields.map(({ name, schema, required, description }) => line("td", make("code", { textContent: name }), kind(schema),
      required ? "required" : "default" in schema ? `default ${schema.default}` : "optional", description ?? ""))));
}

const cards = Object.entries(api.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, operation]) => {
  const body = resolve(Object.values(operation.requestBody?.content ?? {})[0]?.schema);
  const fields = [
    ...(operation.parameters ?? []),
    ...Object.entries(body.properties ?? {}).map(([name, schema]) =>
      ({ name, schema, required: body.required?.includes(name), description: schema.description })),
  ];
  const answer = operation.responses[200].content?.["application/json"]?.schema;
  return make("section", { className: "card" },
    make("h2", {}, make("span", { className: "method", textContent: method.toUpperCase() }), make("code", { textContent: path })),
    make("p", { textContent: operation.description ?? "" }),
    ...(fields.length ? [make("h3", { textContent: "Fields" }), table(fields)] : []),
    make("h3", { textContent: "Try it" }), make("pre", { textContent: command(path, method, fields), tabIndex: 0 }),
    ...(answer ? [make("h3", { textContent: "Answer" }), make("pre", { textContent: written(sample(answer)), tabIndex: 0 })] : []));
}));
document.getElementById("about").textContent = api.info.description;
document.getElementById("operations").replaceChildren(...cards);
