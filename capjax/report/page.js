
// The gallery: search, filter and sort the rows, and draw them a screenful at a time as the reader scrolls.
// Text only ever enters the page as text (textContent, setAttribute), never as markup.
"use strict";
(() => {
  const { metrics, rows, total, rival } = JSON.parse(document.getElementById("data").textContent);
  const get = (id) => document.getElementById(id);
  const [controls, cards, more, count] = ["controls", "cards", "more", "count"].map(get);
  const fields = Object.fromEntries(
    ["query", "field", "sort", "order", "metric", "low", "high", "verdict", "ailment"].map((name) => [name, get(name)]));
  const BATCH = 48;
  const LONG = 150; // characters from which a caption may scroll, and then takes the keyboard's focus

  const fold = (text) => text.toLowerCase();
  for (const row of rows) {
    row.text = { caption: fold(`${row.caption}\n${row.rival ?? ""}`), references: fold(row.references.join("\n")), file: fold(`${row.file}\n${row.id}`) };
    row.text.all = `${row.text.caption}\n${row.text.references}`;
  }

  const addOptions = (select, options) => select.append(...options.map(([value, name]) => new Option(name, value)));
  const sorts = {
    position: null,
    log_prob: (row) => row.log_prob,
    words: (row) => row.words,
    id: (row) => BigInt(row.id),
  };
  metrics.forEach((name, index) => { sorts[`score ${index}`] = (row) => row.scores[index]; });
  const lead = (row) => (row.scores[0] == null || row.rival_scores[0] == null ? null : row.scores[0] - row.rival_scores[0]);
  if (rival) sorts.lead = lead;
  addOptions(fields.sort, [["position", "data set order"], ...metrics.map((name, index) => [`score ${index}`, name]),
    ...(rival && metrics.length ? [["lead", `${metrics[0]} less that of ${rival}`]] : []),
    ["log_prob", "log-probability"], ["words", "length in words"], ["id", "image id"]]);
  addOptions(fields.metric, metrics.map((name, index) => [String(index), `${name} × 100`]));
  get("range").hidden = metrics.length === 0;
  const verdicts = [...new Set(rows.map((row) => row.verdict))].filter(Boolean).sort();
  addOptions(fields.verdict, [["", "any"], ...verdicts.map((name) => [name, name])]);
  get("verdicts").hidden = verdicts.length === 0;
  const ailments = [...new Set(rows.flatMap((row) => row.ailments))].sort();
  addOptions(fields.ailment, [["", "any or none"], ...ailments.map((name) => [name, name])]);
  get("ailments").hidden = ailments.length === 0;

  // Finds whole words, of a file name any part; scripts without spaces between words have no ends to look for.
  const UNSPACED = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}]/u;
  const finder = (text) => {
    const escaped = text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
    const whole = fields.field.value !== "file" && !UNSPACED.test(text);
    return new RegExp(whole ? `(?<![\\p{L}\\p{N}])${escaped}(?![\\p{L}\\p{N}])` : escaped, "gu");
  };

  // words that must occur, "phrases in quotes", and -words that must not
  const parseQuery = (query) => [...fold(query).matchAll(/(-?)(?:"([^"]*)"?|(\S+))/g)]
    .map(([, minus, phrase, word]) => ({ text: phrase ?? word, wanted: !minus }))
    .filter(({ text }) => text && text !== "-")
    .map(({ text, wanted }) => ({ pattern: finder(text), wanted }));

  const number = (value) => value.toFixed(1);

  const element = (name, className, ...children) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...children);
    return made;
  };

  const highlighted = (text, terms) => {
    const folded = fold(text);
    if (folded.length !== text.length) return [text]; // a letter whose lower case is longer: positions would not agree
    const parts = [];
    let start = 0;
    while (start < text.length) {
      let found = null;
      for (const term of terms) {
        term.lastIndex = start;
        const match = term.exec(folded);
        if (match && (found === null || match.index < found.at)) found = { at: match.index, length: match[0].length };
      }
      if (found === null) break;
      parts.push(text.slice(start, found.at), element("mark", "", text.slice(found.at, found.at + found.length)));
      start = found.at + found.length;
    }
    return [...parts, text.slice(start)];
  };

  const card = (row, terms) => {
    const inCaption = fields.field.value === "references" ? [] : terms;
    const inReferences = fields.field.value === "caption" ? [] : terms;
    const picture = element("div", "picture");
    if (row.image) {
      const image = new Image();
      image.loading = "lazy";
      image.decoding = "async";
      image.alt = row.file;
      image.src = row.image;
      picture.append(image);
    } else {
      picture.append(element("span", "", "no picture"));
    }
    const caption = row.caption.trim()
      ? element("p", "caption", ...highlighted(row.caption, inCaption))
      : element("p", "caption empty", "(empty caption)");
    caption.dir = "auto";
    if (row.caption.length > LONG) caption.tabIndex = 0;
    const references = element("ul", "references", ...row.references.map((reference) => {
      const item = element("li", "", ...highlighted(reference, inReferences));
      item.dir = "auto";
      return item;
    }));
    const facts = element("p", "facts");
    if (row.verdict) {
      const known = ["right", "partly", "wrong"].includes(row.verdict) ? row.verdict : "other";
      facts.append(element("span", `verdict v-${known}`, row.verdict));
    }
    metrics.forEach((name, index) => {
      if (row.scores[index] === null) return;
      facts.append(element("span", "", `${name} `, element("b", "", number(100 * row.scores[index]))));
    });
    if (row.log_prob !== null) facts.append(element("span", "", "log p ", element("b", "", row.log_prob.toFixed(2))));
    facts.append(element("span", "", row.file));
    const words = element("div", "words", caption);
    if (row.explained) words.append(explainedWords(picture, row.explained));
    if (row.rival !== null) {
      const score = row.rival_scores[0] == null ? "" : number(100 * row.rival_scores[0]);
      const said = highlighted(row.rival || "(empty caption)", inCaption);
      const other = element("p", "rival", element("span", "", `${rival}:`), " ", element("bdi", "", ...said), " ", element("b", "", score));
      other.dir = "auto";
      words.append(other);
    }
    words.append(references);
    if (row.alternatives.length) {
      const list = element("ol", "", ...row.alternatives.map(([text, logProb]) =>
        element("li", "", logProb === null ? text : `${text} (log p ${logProb.toFixed(2)})`)));
      words.append(element("details", "", element("summary", "", `${row.alternatives.length} more captions`), list));
    }
    words.append(facts);
    return element("li", "card", picture, words);
  };

  let shown = [];
  let drawn = 0;
  let terms = [];

  const draw = () => {
    cards.append(...shown.slice(drawn, drawn + BATCH).map((row) => card(row, terms)));
    drawn = Math.min(drawn + BATCH, shown.length);
    more.hidden = drawn >= shown.length;
  };

  const limit = (field) => (field.value.trim() === "" ? null : Number(field.value));

  // The state of the controls lives in the address, so that a search can be kept and passed on.
  const remember = () => {
    const state = new URLSearchParams();
    for (const [name, field] of Object.entries(fields)) {
      const initial = field.options ? field.options[0]?.value : "";
      if (field.value && field.value !== initial) state.set(name, field.value);
    }
    history.replaceState(null, "", state.size ? `#${state}` : location.pathname);
  };

  const recall = () => {
    const state = [...new URLSearchParams(location.hash.slice(1))].filter(([name]) => Object.hasOwn(fields, name));
    if (location.hash && state.length === 0) return; // the address of a heading
    for (const field of Object.values(fields)) field.value = field.options ? field.options[0]?.value : "";
    for (const [name, value] of state) {
      fields[name].value = value;
      if (fields[name].selectedIndex === -1) fields[name].selectedIndex = 0; // not one of the options
    }
  };

  const update = () => {
    const query = parseQuery(fields.query.value);
    terms = query.filter(({ wanted }) => wanted).map(({ pattern }) => pattern);
    const [low, high, metric] = [limit(fields.low), limit(fields.high), Number(fields.metric.value || 0)];
    shown = rows.filter((row) => {
      if (fields.verdict.value && row.verdict !== fields.verdict.value) return false;
      if (fields.ailment.value && !row.ailments.includes(fields.ailment.value)) return false;
      const score = row.scores[metric] ?? null;
      if ((low !== null || high !== null) && score === null) return false;
      const printed = Number(number(100 * score)); // so that a limit read off the screen includes what it was read from
      if (low !== null && printed < low) return false;
      if (high !== null && printed > high) return false;
      const text = row.text[fields.field.value];
      return query.every(({ pattern, wanted }) => (text.search(pattern) >= 0) === wanted);
    });
    const key = sorts[fields.sort.value];
    const sign = fields.order.value === "up" ? 1 : -1;
    fields.order.disabled = key === null;
    if (key) {
      shown.sort((a, b) => {
        const [left, right] = [key(a), key(b)];
        if (left === null || right === null) return (left === null) - (right === null);
        return sign * (left < right ? -1 : Number(left > right));
      });
    }
    cards.replaceChildren();
    drawn = 0;
    draw();
    const told = (number) => number.toLocaleString("en");
    const all = total === rows.length ? `${told(total)} images` : `${told(rows.length)} images shown here, of ${told(total)}`;
    count.textContent = shown.length === rows.length ? `All ${all}` : `${told(shown.length)} of ${all}`;
  };

  let waiting = 0;
  const changed = () => { update(); remember(); };
  controls.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(changed, 120); });
  controls.addEventListener("submit", (event) => { event.preventDefault(); changed(); });
  controls.addEventListener("reset", () => setTimeout(changed));
  more.addEventListener("click", draw);
  new IntersectionObserver(([entry]) => { if (entry.isIntersecting && !more.hidden) draw(); }, { rootMargin: "900px" }).observe(more);
  addEventListener("hashchange", () => { recall(); update(); });
  controls.hidden = false;
  recall();
  update();
})();
