// The page: a photo on one side, questions about it on the other. It shows what this server's checkpoint can do.

const API = "/api/v1";
const TABS = { match: "Match", answer: "Ask", "fill-mask": "Fill in", reason: "Two photos", search: "Search" };
const FULL = 3; // times even attention at which the colours end, unless a map rises higher
const INFERNO = [[0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51], [249, 140, 10],
  [249, 201, 50], [252, 255, 164]];
const $ = (id) => document.getElementById(id);

/** An element with properties and children. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Asks the server; throws an Error whose message is a sentence for people. */
async function ask(path, fields) {
  let response;
  try {
    if (fields) {
      const form = new FormData();
      for (const [name, value] of fields) form.append(name, value);
      response = await fetch(`${API}/${path}`, { method: "POST", body: form });
    } else {
      response = await fetch(`${API}/${path}`);
    }
  } catch {
    throw new Error("The server cannot be reached. Is it still running?");
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(sentence(body.error ?? `The server answered ${response.status}`));
  return body;
}

/** The first words of a sentence. */
const beginning = (text) => (text.length > 40 ? `${text.slice(0, 40).replace(/\s+\S*$/, "")} …` : text);

const notes = (lines) => lines.map((line) => make("p", { className: "soft note", textContent: line }));

/** What was not read of the sentences that were sent, a line for each. */
function unread({ cut, unknown }) {
  return notes([
    ...cut.map(({ text, tokens, read }) => `“${beginning(text)}” has ${tokens} tokens, of which the first ${read} are read.`),
    ...unknown.map(({ text, words }) => `The model does not know ${words.map((w) => `“${w}”`).join(", ")} in “${beginning(text)}”.`),
  ]);
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
const percent = (share) => `${Math.round(100 * share)} %`;

// ---------------------------------------------------------------------------------------------------------- photos

/** A place for a photo: choose, drop or paste it; a map can be laid over it. */
class Slot {
  constructor(field, title, onChange) {
    this.field = field;
    this.file = null;
    this.onChange = onChange;
    this.root = $("slot").content.firstElementChild.cloneNode(true);
    const find = (selector) => this.root.querySelector(selector);
    [this.drop, this.input, this.stage, this.frame, this.image, this.canvas, this.original] =
      [".drop", "input", ".stage", ".frame", "img", "canvas", ".original"].map(find);
    this.caption = find(".name");
    if (title) Object.assign(find(".slot-name"), { textContent: title, hidden: false });
    this.input.setAttribute("aria-label", title ? `${title}: choose a photo` : "Choose a photo");
    this.input.addEventListener("change", () => this.input.files[0] && this.set(this.input.files[0]));
    find(".another").addEventListener("click", () => this.input.click());
    for (const type of ["dragover", "dragleave", "drop"]) {
      this.root.addEventListener(type, (event) => {
        event.preventDefault();
        this.root.classList.toggle("over", type === "dragover");
        const file = type === "drop" && event.dataTransfer.files[0];
        if (file) this.set(file);
      });
    }
    this.image.addEventListener("load", () => this.shape(this.image.naturalWidth / this.image.naturalHeight));
    this.image.addEventListener("error", () => {
      // TIFF, say: the server can read what this browser cannot show.
      this.image.hidden = true;
      this.shape(1);
    });
  }

  set(file, name = file.name, example = null) {
    URL.revokeObjectURL(this.image.src);
    this.file = file;
    this.input.value = "";
    this.image.hidden = false;
    this.image.src = URL.createObjectURL(file);
    this.image.alt = `The photo: ${name}`;
    this.caption.textContent = name;
    this.drop.hidden = true;
    this.stage.hidden = false;
    this.unmap();
    this.onChange(example);
  }

  /** Width over height; the whole photo is to be seen without scrolling. */
  shape(ratio) {
    this.frame.style.aspectRatio = ratio;
    this.frame.style.maxWidth = `${62 * ratio}vh`;
  }

  unmap() {
    this.canvas.hidden = this.original.hidden = true;
    this.frame.classList.remove("mapped");
  }

  /**
   * Attention in colour over the photo in grey. The grid covers the whole photo, so its map is scaled up to all of it.
   * `full` is where the colours end, in times even attention.
   */
  map(rows, full) {
    const [height, width] = [rows.length, rows[0].length];
    const end = full / (width * height);
    if (this.image.hidden) this.shape(width / height);
    const across = 360;
    const down = Math.max(1, Math.round((across * this.frame.clientHeight) / this.frame.clientWidth));
    Object.assign(this.canvas, { width: across, height: down });
    const context = this.canvas.getContext("2d");
    const pixels = context.createImageData(across, down);
    const near = (place, size, count) => {
      const at = Math.min(Math.max(((place + 0.5) * count) / size - 0.5, 0), count - 1);
      return [Math.floor(at), Math.min(Math.floor(at) + 1, count - 1), at % 1];
    };
    const columns = Array.from({ length: across }, (_, x) => near(x, across, width));
    for (let y = 0, i = 0; y < down; y++) {
      const [top, bottom, v] = near(y, down, height);
      for (const [left, right, u] of columns) {
        const value = (rows[top][left] * (1 - u) + rows[top][right] * u) * (1 - v) +
          (rows[bottom][left] * (1 - u) + rows[bottom][right] * u) * v;
        const level = Math.min(value / end, 1);
        pixels.data.set([...colour(level), 255 * (0.35 + 0.3 * level)], i);
        i += 4;
      }
    }
    context.putImageData(pixels, 0, 0);
    this.canvas.hidden = this.original.hidden = false;
    this.frame.classList.add("mapped");
  }
}

function colour(level) {
  const at = level * (INFERNO.length - 1);
  const low = INFERNO[Math.floor(at)], high = INFERNO[Math.ceil(at)];
  return low.map((value, i) => value + (high[i] - value) * (at % 1));
}

// ------------------------------------------------------------------------------------------------------- attention

/** The words of a sentence, and where the one that is chosen looks. */
class Attention {
  constructor(slots, info) {
    this.slots = slots;
    this.text = "";
    this.chosen = null;
    this.asked = 0; // answers that come late, to an older question, are dropped
    const options = (select, entries) => select.append(...entries.map(([value, label]) => new Option(label, value)));
    const layers = Array.from({ length: info.layers }, (_, i) => [i, i ? `${i}` : "0 (first)"]);
    options($("layer"), [...layers, ["rollout", "all, rolled out"]]);
    options($("head"), [["", "mean of all"], ...Array.from({ length: info.heads }, (_, i) => [i, `${i}`])]);
    for (const select of [$("layer"), $("head")]) select.addEventListener("change", () => this.load());
    for (const slot of slots) slot.original.addEventListener("click", () => this.choose(null));
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.choose(null));
  }

  hide() {
    this.asked++;
    this.text = "";
    $("attention").hidden = true;
    this.choose(null);
  }

  async show(text) {
    if (text === this.text) return;
    this.text = text;
    this.chosen = null;
    for (const slot of this.slots) slot.unmap();
    await this.load();
  }

  /** The maps of all words at once: choosing another word asks nobody. */
  async load() {
    const rollout = $("layer").value === "rollout";
    $("head").disabled = rollout;
    const options = [["text", this.text], ["rollout", rollout]];
    if (!rollout) options.push(["layer", $("layer").value]);
    if (!rollout && $("head").value) options.push(["head", $("head").value]);
    const asked = ++this.asked;
    try {
      const found = await Promise.all(this.slots.map((slot) => ask("attend", [["image", slot.file], ...options])));
      if (asked !== this.asked) return;
      this.found = found.map((one) => one.words);
    } catch (error) {
      if (asked === this.asked) $("attention-said").textContent = error.message;
      return;
    }
    $("attention").hidden = false;
    const words = this.found[0].map(({ word }) => word);
    if (words.join("\n") !== this.words?.join("\n")) { // else they stay, and so does the keyboard's place
      $("words").replaceChildren(...words.map((word, i) => {
        const button = make("button", { type: "button", textContent: word });
        button.addEventListener("click", () => this.choose(this.chosen === i ? null : i));
        return button;
      }));
      this.words = words;
    }
    this.choose(this.chosen);
  }

  choose(number) {
    this.chosen = number;
    [...$("words").children].forEach((button, i) => button.setAttribute("aria-pressed", i === number));
    $("attention-hint").hidden = number !== null;
    $("attention-said").textContent = "";
    if (number === null) {
      for (const slot of this.slots) slot.unmap();
      return;
    }
    const full = Math.max(FULL, ...this.found.map((words) => strongest(words[number].map).peak));
    this.slots.forEach((slot, i) => slot.map(this.found[i][number].map, full));
    $("full").textContent = `${full.toFixed(1)} × even`;
    $("attention-said").textContent = this.slots.map((slot, i) => {
      const { word, share, map } = this.found[i][number];
      const { peak, where } = strongest(map);
      const photo = this.slots.length > 1 ? `the ${slot.field} photo` : "the photo";
      return `“${word}” spends ${percent(share)} of its attention on ${photo}, ` +
        `most densely ${where} (${peak.toFixed(1)} × even).`;
    }).join(" ");
  }
}

/** How high a map rises above an even one, and where, in words. */
function strongest(map) {
  const cells = map.flat();
  const at = cells.indexOf(Math.max(...cells));
  const third = (place, count) => Math.floor((3 * (place + 0.5)) / count);
  const vertical = ["top", "", "bottom"][third(Math.floor(at / map[0].length), map.length)];
  const horizontal = ["left", "", "right"][third(at % map[0].length, map[0].length)];
  const where = vertical || horizontal ? `at the ${[vertical, horizontal].filter(Boolean).join(" ")}` : "in the middle";
  return { peak: cells[at] * cells.length, where };
}

// ------------------------------------------------------------------------------------------------------- questions

/** A line with a bar: a button where something can be done with it. */
function row(label, score, onClick) {
  const bar = make("i");
  bar.style.width = `${100 * score}%`;
  const properties = { className: "row", ...(onClick ? { type: "button" } : {}) };
  const line = make(onClick ? "button" : "div", properties, make("span", { className: "label", textContent: label }),
    make("span", { className: "score", textContent: score.toFixed(3) }), make("span", { className: "meter" }, bar));
  if (onClick) line.addEventListener("click", () => onClick(line));
  return make("li", {}, line);
}

const TASKS = {
  async match(text, slots, attention) {
    const texts = text.split("\n").map((line) => line.trim()).filter(Boolean);
    const found = await ask("match", [["image", slots[0].file], ...texts.map((line) => ["text", line])]);
    const { scores } = found;
    const list = make("ol");
    const select = (line, chosen) => {
      for (const other of list.querySelectorAll(".row")) other.setAttribute("aria-pressed", other === line);
      return attention.show(chosen);
    };
    scores.sort((a, b) => b.score - a.score);
    list.append(...scores.map((entry) => row(entry.text, entry.score, (line) => {
      select(line, entry.text);
      if (matchMedia("(max-width: 860px)").matches) $("photos").scrollIntoView({ behavior: "smooth" });
    })));
    select(list.querySelector(".row"), scores[0].text);
    return [...unread(found), list, make("p", { className: "soft", textContent: "Choose a sentence to see what its words look at." })];
  },

  async answer(text, slots, attention) {
    const found = await ask("answer", [["image", slots[0].file], ["question", text]]);
    attention.show(text);
    return [...unread(found), make("ol", {}, ...found.answers.map(({ answer, score }) => row(answer, score)))];
  },

  async "fill-mask"(text, slots, attention) {
    const found = await ask("fill-mask", [["image", slots[0].file], ["text", text]]);
    const { masks } = found;
    attention.show(text);
    const filled = make("p", { className: "filled" });
    text.split("[MASK]").forEach((part, i) => filled.append(part, ...(masks[i] ? [make("mark", { textContent: masks[i][0].token })] : [])));
    return [...unread(found), filled, ...masks.flatMap((fills, i) => [
      ...(masks.length > 1 ? [make("h3", { textContent: `[MASK] ${i + 1}` })] : []),
      make("ol", {}, ...fills.map(({ token, score }) => row(token, score))),
    ])];
  },

  async reason(text, slots, attention) {
    const judgement = await ask("reason", [...slots.map((slot) => [slot.field, slot.file]), ["statement", text]]);
    attention.show(text);
    return [...unread(judgement), make("p", { className: `verdict ${judgement.true}`, textContent: judgement.true ? "True" : "False" }),
      make("ol", {}, row("probability that it is true", judgement.score))];
  },

  async search(text, slots) {
    const found = await ask(`search?${new URLSearchParams({ text })}`);
    const { results, left_out: lost } = found;
    const damaged = `${lost} ${lost === 1 ? "photo is" : "photos are"} damaged in the index and left out; the server's log says which.`;
    const said = [...unread(found), ...notes(lost ? [damaged] : [])];
    if (!results.length) return [...said, make("p", { textContent: "Nothing was found." })];
    return [...said, make("ul", { className: "found" }, ...results.map(({ image, score, changed, missing }, i) => {
      const caption = make("span", { textContent: score.toFixed(3) + (changed ? ", changed since it was indexed" : "") });
      const button = make("button", { type: "button" }, make("img", { src: missing ? "" : image, alt: `Result ${i + 1}`, loading: "lazy" }), caption);
      const gone = () => {
        button.disabled = true;
        caption.textContent = `${score.toFixed(3)}, no longer there`;
      };
      if (missing) gone();
      button.addEventListener("click", async () => {
        const photo = await fetch(image);
        if (!photo.ok) return gone();
        const slot = slots.find((one) => !one.file) ?? slots[0];
        slot.set(await photo.blob(), `result ${i + 1} of “${text}”`);
        $("photos").scrollIntoView({ behavior: "smooth" });
      });
      return make("li", {}, button);
    }))];
  },
};

function prepare(task, slots, attention) {
  const form = $(task);
  const [button, error, results] = [".go", ".error", ".results"].map((selector) => form.querySelector(selector));
  const field = form.querySelector("textarea, input");
  const fail = (message) => {
    error.textContent = message;
    results.replaceChildren();
  };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    error.textContent = "";
    if (button.getAttribute("aria-busy") === "true") return;
    const missing = task !== "search" && slots.find((slot) => !slot.file);
    if (missing) {
      fail(slots.length > 1 ? `Choose the ${missing.field} photo first.` : "Choose a photo first.");
      missing.input.focus();
      return;
    }
    if (!field.value.trim()) return fail("Write something first.");
    button.setAttribute("aria-busy", "true");
    const start = performance.now();
    try {
      const shown = await TASKS[task](field.value.trim(), slots, attention);
      const took = `In ${((performance.now() - start) / 1000).toFixed(2)} seconds`;
      results.replaceChildren(make("p", { className: "took", textContent: took }), ...shown);
    } catch (failure) {
      fail(failure.message);
    }
    button.removeAttribute("aria-busy");
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  return () => fail("");
}

/** Tabs as the ARIA practices have them: arrows move, one of them is in the tab order. */
function makeTabs(tasks) {
  const buttons = tasks.map((task) => make("button", { type: "button", id: `tab-${task}`, textContent: TABS[task] }));
  const open = (chosen) => tasks.forEach((task, i) => {
    buttons[i].setAttribute("aria-selected", i === chosen);
    buttons[i].tabIndex = i === chosen ? 0 : -1;
    $(task).hidden = i !== chosen;
  });
  buttons.forEach((button, i) => {
    button.setAttribute("role", "tab");
    button.setAttribute("aria-controls", tasks[i]);
    $(tasks[i]).setAttribute("aria-labelledby", button.id);
    button.addEventListener("click", () => open(i));
    button.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = (i + step + buttons.length) % buttons.length;
      open(next);
      buttons[next].focus();
    });
  });
  $("tabs").append(...buttons);
  $("tabs").hidden = tasks.length < 2;
  open(0);
}

/** Photos to begin with, and a text to go with each, which never replaces one that somebody wrote. */
function makeExamples(examples, slots, tasks) {
  const written = {};
  const suggest = (example) => {
    const others = examples.filter((one) => one !== example);
    const texts = {
      match: [example, ...others.slice(0, 3)].map((one) => one.text).sort().join("\n"),
      answer: example.question,
      "fill-mask": example.text.replace(/\S+$/, "[MASK]"),
    };
    for (const task of tasks.filter((one) => texts[one])) {
      const field = $(`${task}-text`);
      if (field.value === "" || field.value === written[task]) field.value = written[task] = texts[task];
    }
  };
  const list = $("examples").querySelector("ul");
  list.append(...examples.map((example) => {
    const button = make("button", { type: "button" }, make("img", { src: example.image, alt: example.text }));
    button.addEventListener("click", async () => {
      const slot = slots.find((one) => !one.file) ?? slots.at(-1);
      slot.set(await (await fetch(example.image)).blob(), example.text, button);
      suggest(example);
    });
    return make("li", {}, button);
  }));
  $("examples").hidden = false;
  return (pressed) => list.querySelectorAll("button").forEach((one) => one.setAttribute("aria-pressed", one === pressed));
}

async function start() {
  const info = await ask("info");
  $("model").textContent = `${info.name}, ${info.kind}`;
  $("version").textContent = `pixelbert ${info.version}`;
  document.title = `${info.name} · pixelbert`;
  $("match-hint").textContent = info.kind.includes("retrieval")
    ? "This model has learned to rank: compare its scores with each other, not with one half."
    : "The score is the probability that the sentence belongs to the photo.";
  const tasks = Object.keys(TABS).filter((task) => info.can.includes(task));
  const clear = [];
  let press = () => {};
  let attention = null;
  const changed = (example) => {
    clear.forEach((one) => one());
    attention?.hide();
    press(example);
  };
  const slots = info.can.includes("reason")
    ? [new Slot("left", "Left photo", changed), new Slot("right", "Right photo", changed)]
    : [new Slot("image", "", changed)];
  attention = new Attention(slots, info);
  $("slots").classList.toggle("two", slots.length > 1);
  $("slots").append(...slots.map((slot) => slot.root));
  for (const task of tasks) {
    const reset = prepare(task, slots, attention);
    if (task !== "search") clear.push(reset);
  }
  press = makeExamples(info.examples, slots, tasks);
  makeTabs(tasks);
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
    if (file) (slots.find((slot) => !slot.file) ?? slots[0]).set(file, "pasted photo");
  });
  $("add-mask").addEventListener("click", () => {
    const field = $("fill-mask-text");
    field.setRangeText("[MASK]", field.selectionStart, field.selectionEnd, "end");
    field.focus();
  });
}

start().catch((error) => { $("failed").textContent = error.message; });
