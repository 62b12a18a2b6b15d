// The page: pictures go to the API of the server that it came from, captions come back and stay in memory alone.
// Text only ever enters the page as text (textContent, setAttribute), never as markup.
"use strict";
(() => {
  const get = (id) => document.getElementById(id);
  const [cards, status, fields, settings] = ["cards", "status", "fields", "settings"].map(get);
  const AT_ONCE = 4; // requests, if the server takes as many of one client
  const KEPT = 60; // cards, and those of pictures that wait, so that an afternoon does not fill the memory
  const PATIENCE = 120_000; // milliseconds in which a picture is sent again to a server that is busy
  const waiting = [];
  let running = 0;
  let model = null;

  const element = (name, className, ...children) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...children);
    return made;
  };
  const say = (text) => { status.textContent = text; };
  const percent = (probability) => {
    if (probability == null) return "—";
    return probability >= 0.9995 ? "100 %" : `${(100 * probability).toFixed(probability < 0.1 ? 1 : 0)} %`;
  };
  const decimals = (number) => (number == null ? "—" : number.toFixed(2));
  const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

  // What the server says of itself.

  const spaced = (name) => name.replaceAll("_", " ");
  const inputOf = (field) => {
    if (field.choices || field.type === "boolean") {
      const select = element("select");
      for (const value of field.choices ?? ["false", "true"]) select.append(new Option(spaced(value), value));
      return select;
    }
    const input = element("input");
    const isNumber = field.type !== "string";
    input.type = isNumber ? "number" : "text";
    if (isNumber) input.step = field.type === "integer" ? "1" : "any";
    if (field.most) input.max = field.most;
    if (!isNumber) input.placeholder = "word,word";
    return input;
  };

  const reset = () => {
    for (const field of model.fields) settings.elements[field.name].value = String(field.default);
    showFields();
  };
  // The fields that the chosen method uses and that were changed: what a request has to say.
  const changed = () => {
    const method = settings.elements.method.value;
    const used = model.fields.filter((field) => field.methods.includes(method));
    const told = used.map((field) => [field.name, settings.elements[field.name].value.trim(), String(field.default)]);
    return Object.fromEntries(told.filter(([, value, normal]) => value !== normal));
  };
  const showFields = () => {
    const method = settings.elements.method.value;
    for (const field of model.fields) {
      settings.elements[field.name].closest("label").hidden = !field.methods.includes(method);
    }
    const told = Object.entries(changed()).map(([name, value]) => `${spaced(name)} ${spaced(value) || "none"}`);
    get("chosen").textContent = told.join(", ") || `${spaced(method)}, as the server was set up`;
  };

  const showModel = () => {
    const { limits } = model;
    const facts = { model: model.recipe || model.model.name, decoder: spaced(model.decoder), vocabulary: model.vocabulary_size.toLocaleString("en") };
    for (const [name, value] of Object.entries(facts)) {
      get("model").append(element("div", "", element("dt", "", name), element("dd", "", value)));
    }
    get("bounds").textContent =
      `JPEG, PNG, WebP, GIF …, each up to ${megabytes(limits.max_request_bytes)} and ${limits.max_pixels / 1e6} megapixels`;
    for (const field of model.fields) {
      const input = inputOf(field);
      input.name = field.name;
      const help = element("small", "", field.help);
      help.id = `help-${field.name}`;
      input.setAttribute("aria-describedby", help.id);
      fields.append(element("label", "", spaced(field.name), input, help));
    }
    reset();
  };

  // Requests.

  const ask = async (path, options, isWanted = () => true) => {
    let response;
    for (const start = Date.now(); ; ) {
      try {
        response = await fetch(path, options);
      } catch {
        throw new Error("The server does not answer. Is it still running?");
      }
      const wait = 1000 * Number(response.headers.get("Retry-After"));
      if (response.ok || !wait || !isWanted() || Date.now() - start + wait > PATIENCE) break;
      await new Promise((resolve) => { setTimeout(resolve, wait); });
    }
    let answer;
    try {
      answer = await response.json();
    } catch {
      throw new Error(`The server answered ${response.status} ${response.statusText} and nothing to read.`);
    }
    if (!response.ok) throw new Error(answer.detail ?? `The server answered ${response.status}.`);
    return answer;
  };
  const caption = async ({ file, search, card }, explain) => {
    const body = new FormData();
    body.append("image", file, file.name || "pasted picture");
    for (const [name, value] of Object.entries(search)) body.append(name, value);
    if (explain) body.append("explain", "true");
    return (await ask("/v1/captions", { method: "POST", body }, () => card.isConnected)).captions[0];
  };

  // Cards.

  const show = (card, find, text) => {
    const part = card.querySelector(find);
    part.textContent = text;
    part.hidden = !text;
    return part;
  };
  const discard = (card) => {
    URL.revokeObjectURL(card.dataset.url);
    card.remove();
  };

  const makeCard = (file) => {
    const card = get("card").content.firstElementChild.cloneNode(true);
    const name = file.name || "pasted picture";
    card.dataset.url = URL.createObjectURL(file);
    const image = card.querySelector("img");
    image.alt = name;
    image.src = card.dataset.url;
    image.addEventListener("load", () => {
      card.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
      card.style.setProperty("--natural", `${image.naturalWidth}px`);
    });
    image.addEventListener("error", () => { // this browser cannot show it (HEIC); the server may well read it
      card.querySelector(".frame").hidden = true;
      show(card, ".nopicture", `${name} (this browser cannot show it)`);
    });
    show(card, ".file", name);
    card.classList.add("busy");
    show(card, ".caption", "Looking …");
    cards.prepend(card);
    get("clear").hidden = false;
    return card;
  };

  const showCaption = (card, entry, search) => {
    show(card, ".caption", entry.caption || "(empty caption)").classList.toggle("empty", !entry.caption);
    const told = Object.entries(search).map(([name, value]) => `, ${spaced(name)} ${spaced(value)}`).join("");
    show(card, ".facts", `log-probability ${decimals(entry.log_prob)}${told}`);
    card.querySelector(".copy").hidden = false;
    const others = card.querySelector(".others");
    others.hidden = entry.alternatives.length === 0;
    others.open = true;
    others.querySelector("summary").textContent = entry.alternatives.length === 1 ? "1 alternative" : `${entry.alternatives.length} alternatives`;
    others.querySelector("ol").append(...entry.alternatives.map(({ caption: text, log_prob }) =>
      element("li", "", text || "(empty caption)", " ", element("small", "", decimals(log_prob)))));
  };

  const drawHeat = (card, heat, crop) => {
    const canvas = card.querySelector(".heat");
    const image = card.querySelector("img");
    const [width, height] = [image.naturalWidth, image.naturalHeight];
    canvas.hidden = !heat || !width;
    if (canvas.hidden) return;
    const side = Math.min(width, height);
    const covered = crop === "center" ? [side / width, side / height] : [1, 1];
    canvas.style.width = `${100 * covered[0]}%`;
    canvas.style.height = `${100 * covered[1]}%`;
    canvas.style.left = `${50 * (1 - covered[0])}%`;
    canvas.style.top = `${50 * (1 - covered[1])}%`;
    canvas.width = canvas.height = heat.length;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(heat.length, heat.length);
    // What had nothing to do with the word goes dark; what is lit keeps its colours.
    heat.flat().forEach((value, index) => { pixels.data[4 * index + 3] = 215 * (1 - value); });
    context.putImageData(pixels, 0, 0);
  };

  const showExplanation = (card, explanation) => {
    const place = card.querySelector(".explanation");
    const tokens = place.querySelector(".tokens");
    const table = place.querySelector("table");
    const buttons = explanation.words.map((word) => {
      const button = element("button", "token", word.text, element("small", "", percent(word.probability)));
      button.type = "button";
      button.setAttribute("aria-pressed", "false");
      return button;
    });
    let pinned = -1;
    const light = (index) => {
      const word = explanation.words[index];
      buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === index)));
      drawHeat(card, word?.heat, explanation.crop);
      table.hidden = !word;
      if (!word) return;
      table.caption.textContent = `Most likely where “${word.text}” stands`;
      table.tBodies[0].replaceChildren(...word.likely.map(({ text, probability }) => {
        const meter = element("meter");
        meter.value = probability ?? 0;
        meter.setAttribute("aria-hidden", "true");
        return element("tr", text === word.text ? "said" : "", element("td", "", text),
          element("td", "", percent(probability)), element("td", "", meter));
      }));
    };
    buttons.forEach((button, index) => {
      button.addEventListener("mouseenter", () => light(index));
      button.addEventListener("focus", () => { pinned = index; light(index); });
      button.addEventListener("click", () => { pinned = index; light(index); });
    });
    tokens.addEventListener("mouseleave", () => light(pinned));
    place.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      pinned = -1;
      light(pinned);
    });
    tokens.replaceChildren(...buttons);
    const lit = explanation.heat_method ? ` and what of the picture it came from (${explanation.heat_method})` : "";
    show(card, ".hint", `Point at a word to see what else was likely${lit}.`);
    place.hidden = false;
    light(pinned);
  };

  const work = async (job) => {
    const { file, search, card } = job;
    const name = file.name || "pasted picture";
    try {
      if (model && file.size > model.limits.max_request_bytes) {
        throw new Error(`Expected a picture of at most ${megabytes(model.limits.max_request_bytes)}, got ${megabytes(file.size)}; choose a smaller copy.`);
      }
      const entry = await caption(job, false);
      showCaption(card, entry, search);
      say(`${name}: ${entry.caption || "empty caption"}`);
    } catch (error) {
      show(card, ".caption", "");
      show(card, ".problem", error.message);
      say(`${name} could not be captioned.`);
      return;
    } finally {
      card.classList.remove("busy");
    }
    try {
      showExplanation(card, (await caption(job, true)).explanation);
    } catch (error) {
      card.querySelector(".facts").append(`; no word by word: ${error.message}`);
    }
  };
  const workOn = async () => {
    if (running >= Math.min(AT_ONCE, model?.limits.max_requests_per_client ?? AT_ONCE)) return;
    running += 1;
    for (let job; (job = waiting.shift()); ) {
      if (job.card.isConnected) await work(job);
    }
    running -= 1;
  };
  const add = (files) => {
    const search = model ? changed() : {};
    for (const file of files) {
      waiting.push({ file, search, card: makeCard(file) });
      workOn();
    }
    const done = [...cards.children].filter((card) => !card.classList.contains("busy"));
    while (cards.children.length > KEPT && done.length > 0) discard(done.pop());
  };

  // How pictures come in.

  for (const [button, input] of [["choose", "files"], ["photograph", "camera"]]) {
    get(button).addEventListener("click", () => get(input).click());
    get(input).addEventListener("change", (event) => {
      add([...event.target.files]);
      event.target.value = ""; // the same file may be chosen again
    });
  }
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length === 0) return; // text, for a field of the form
    event.preventDefault();
    add(files);
  });
  const drop = get("drop");
  document.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const files = [...event.dataTransfer.files];
    if (files.length === 0) say("Expected files; what was dropped is none. Save the picture first, or copy and paste it.");
    add(files);
  });

  const copy = async (button) => {
    const text = button.closest(".card").querySelector(".caption").textContent;
    try {
      await navigator.clipboard.writeText(text);
      say("Copied.");
    } catch { // not allowed, as on pages that come neither from this computer nor by https
      getSelection().selectAllChildren(button.closest(".card").querySelector(".caption"));
      say("The caption is selected; copy it with the keyboard.");
    }
  };
  cards.addEventListener("click", (event) => {
    const button = event.target.closest(".copy");
    if (button) copy(button);
  });
  get("clear").addEventListener("click", () => {
    waiting.length = 0;
    [...cards.children].forEach(discard);
    get("clear").hidden = true;
    say("Nothing captioned yet.");
    get("choose").focus();
  });
  settings.addEventListener("input", showFields);
  settings.addEventListener("submit", (event) => event.preventDefault());
  settings.addEventListener("reset", (event) => { event.preventDefault(); reset(); });

  ask("/v1/model").then((answer) => { model = answer; showModel(); }, (error) => say(error.message));
})();
