"use strict";
(() => {
const data = window.REVIEW_DATA;
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const ROW = 64; // px, as in the style sheet
const DIGITS = /^\d+$/;

// Name, colour and line style of every kind of box, in the order in which they are drawn.
const KINDS = {
  ignored: { words: "region to ignore", colour: "#cc79a7", dash: "2 5", width: 2 },
  annotated: { words: "annotated", colour: "#56b4e9", dash: "", width: 2 },
  waiting: { words: "another proposal", colour: "#ffffff", dash: "3 4", width: 1.5 },
  rejected: { words: "rejected", colour: "#d55e00", dash: "1.5 5", width: 2 },
  accepted: { words: "accepted", colour: "#009e73", dash: "14 3", width: 2.5 },
  changed: { words: "of another class", colour: "#e69f00", dash: "9 3 2 3", width: 2.5 },
  current: { words: "proposal in question", colour: "#f0e442", dash: "7 4", width: 1.5 },
};
const KEYS = [
  ["A", "accept"], ["R or X", "reject"], ["C", "another class: its number, or a part of its name"],
  ["→ N Space", "next"], ["← P", "previous"], ["↓ ↑", "next and previous proposal of an image's class"],
  ["U or Ctrl Z", "undo"], ["L", "looked through: no object of this class is missing in this image"],
  ["Shift A, Shift R", "accept or reject the rest of an image's class"],
  ["E", "correct the box: arrows move it, with Shift its lower right corner. Or drag its edges"],
  ["Shift E", "the box as it was proposed"],
  ["G", "proposals, or image by class"], ["Z", "zoom to the proposal"], ["S", "save decisions.json"],
  ["T", "colours: as the system, light, dark"], ["?", "these keys"],
];
const MARKS = { accept: "✓", reject: "✕", class: "⇄" };

if (!data) {
  byId("nothing").textContent = "review_data.js is missing; it belongs beside this page.";
  byId("nothing").hidden = false;
  return;
}

const classes = data.classes.map(([id, name, rate]) => ({ id, name, rate }));
const images = data.images.map(([id, name, width, height, thumbnail, full]) =>
  ({ id, name, width, height, thumbnail, full, annotations: [], proposals: [] }));
for (const [image, label, x, y, w, h, ignored] of data.annotations) {
  images[image].annotations.push({ label, box: [x, y, w, h], ignored });
}
const proposals = data.proposals.map(([id, image, label, x, y, w, h, score, probability]) =>
  ({ id, image, label, box: [x, y, w, h], score, probability }));
const positionOf = new Map(proposals.map((proposal, position) => [proposal.id, position]));
const labelOf = new Map(classes.map((one, label) => [one.id, label]));
const imageOf = new Map(images.map((one, image) => [one.id, image]));
proposals.forEach((proposal, position) => images[proposal.image].proposals.push(position));
const pairKey = (image, label) => image + ":" + label;
const members = new Map(); // of an image's class: positions of its proposals
proposals.forEach((proposal, position) => {
  const key = pairKey(proposal.image, proposal.label);
  if (!members.has(key)) members.set(key, []);
  members.get(key).push(position);
});
const complete = new Set(data.complete.map(([image, label]) => pairKey(image, label)));

// ---- state, and where it is kept ------------------------------------------------------------

const STORE = "comining-review:" + data.hash;
const THEME = "comining-review:theme";
let decisions = new Map(); // id of a proposal -> {decision, category_id}
let boxes = new Map(); // id of a proposal -> its corrected box, [x, y, w, h]
let looked = new Set(); // keys of pairs
let unsaved = false;
const undoStack = [];
let mode = "single";
let items = []; // positions of proposals; in the mode "whole" keys of pairs
let index = 0;
let member = 0; // which proposal of the pair
let zoomed = false;
let editing = false; // whether arrow keys correct the box
let correction = 0; // counts the times of editing; undo takes one back as a whole
let drag = null; // of an edge or a corner of a box

function remember() {
  const kept = { decisions: [...decisions], boxes: [...boxes], looked: lookedPairs(), unsaved };
  try {
    localStorage.setItem(STORE, JSON.stringify(kept));
  } catch (error) {
    say("This browser does not keep decisions: save them before you leave.", true);
  }
}

function recall() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORE));
    if (kept === null) return;
    const said = new Map(kept.decisions.filter(([id, one]) => positionOf.has(id)
      && Object.hasOwn(MARKS, one.decision)));
    looked = new Set(pairsOf(kept.looked));
    // A page of an earlier version, in another tab, keeps no boxes.
    if (kept.boxes) boxes = new Map(kept.boxes.filter(([id, box]) => positionOf.has(id) && isBox(box)));
    decisions = said;
    unsaved = Boolean(kept.unsaved);
  } catch (error) {
    say("What this browser has kept cannot be read.", true);
  }
}

// Keys of those pairs that are on this page.
function pairsOf(pairs) {
  return pairs.filter((pair) => imageOf.has(pair.image_id) && labelOf.has(pair.category_id))
    .map((pair) => pairKey(imageOf.get(pair.image_id), labelOf.get(pair.category_id)));
}

function lookedPairs() {
  return [...looked].map((key) => {
    const [image, label] = key.split(":").map(Number);
    return { image_id: images[image].id, category_id: classes[label].id };
  });
}

const isBox = (box) => Array.isArray(box) && box.length === 4 && box.every(Number.isFinite)
  && box[2] > 0 && box[3] > 0;
const boxOf = (position) => boxes.get(proposals[position].id) || proposals[position].box;

// ---- what is looked at -----------------------------------------------------------------------

const pairMembers = () => shownMembers.get(items[index]) || [];
let shownMembers = new Map(); // of the mode "whole": members that fit the filters

function currentPosition() {
  if (!items.length) return -1;
  return mode === "single" ? items[index] : pairMembers()[member];
}

function currentPair() {
  const position = currentPosition();
  return position < 0 ? null : pairKey(proposals[position].image, proposals[position].label);
}

function filtered() {
  const label = byId("filter-class").value;
  const low = Number(byId("filter-low").value || 0);
  const high = Number(byId("filter-high").value || 1);
  const wanted = byId("filter-state").value;
  const found = [];
  proposals.forEach((proposal, position) => {
    if (label !== "" && proposal.label !== Number(label)) return;
    if (proposal.probability < low || proposal.probability > high) return;
    if (wanted !== "all" && decisions.has(proposal.id) !== (wanted === "decided")) return;
    found.push(position);
  });
  return found;
}

// The list stays as it is while decisions are made, so that nothing moves under the reader's eyes.
function refilter(keep) {
  const found = filtered();
  shownMembers = new Map();
  if (mode === "single") {
    items = found;
  } else {
    for (const position of found) {
      const key = pairKey(proposals[position].image, proposals[position].label);
      if (!shownMembers.has(key)) shownMembers.set(key, []);
      shownMembers.get(key).push(position);
    }
    items = [...shownMembers.keys()];
  }
  const count = found.length === 1 ? "1 proposal" : found.length + " proposals";
  byId("shown").textContent = mode === "single" ? count
    : count + " in " + items.length + (items.length === 1 ? " pair" : " pairs");
  byId("list-space").style.height = items.length * ROW + "px";
  index = 0;
  member = 0;
  if (keep >= 0) select(keep);
  show();
}

// Go to a proposal, if it is in the list.
function select(position) {
  const item = mode === "single" ? position
    : pairKey(proposals[position].image, proposals[position].label);
  const found = items.indexOf(item);
  if (found < 0) return false;
  index = found;
  member = mode === "single" ? 0 : Math.max(0, pairMembers().indexOf(position));
  return true;
}

function step(by) {
  const to = index + by;
  if (to < 0 || to >= items.length) {
    say(by > 0 ? "This is the last one." : "This is the first one.");
    return;
  }
  index = to;
  member = 0;
  show();
}

function stepMember(by) {
  if (mode === "single") return step(by);
  const to = member + by;
  if (to < 0 || to >= pairMembers().length) return step(by);
  member = to;
  show();
}

const undecided = (position) => !decisions.has(proposals[position].id);

function advance() {
  if (mode === "whole") {
    const mine = pairMembers();
    for (let ahead = 1; ahead <= mine.length; ahead++) {
      const to = (member + ahead) % mine.length;
      if (undecided(mine[to])) {
        member = to;
        return;
      }
    }
    say("All decided here. → goes on.");
    return;
  }
  for (let ahead = 1; ahead < items.length; ahead++) {
    const to = (index + ahead) % items.length;
    if (undecided(items[to])) {
      if (to < index) say("On to the first that is undecided.");
      index = to;
      return;
    }
  }
  if (items.length && !undecided(items[index])) say("All of this list are decided. Save them.");
}

// ---- deciding --------------------------------------------------------------------------------

// With `more`, another step of the last change, which undo takes back with it.
function change(changes, position, more) {
  drag = null;
  const before = apply(changes);
  const last = undoStack.at(-1);
  if (more && last && last.more === more) last.changes.push(...before);
  else undoStack.push({ position, more, changes: before });
  unsaved = true;
  remember();
}

// Make changes; those that take them back.
function apply(changes) {
  return changes.map((one) => {
    if (one.boxOf !== undefined) {
      const before = boxes.get(one.boxOf);
      const proposed = proposals[positionOf.get(one.boxOf)].box;
      if (one.box && String(one.box) !== String(proposed)) boxes.set(one.boxOf, one.box);
      else boxes.delete(one.boxOf);
      return { boxOf: one.boxOf, box: before };
    }
    if (one.pair !== undefined) {
      const before = looked.has(one.pair);
      if (one.looked) looked.add(one.pair); else looked.delete(one.pair);
      return { pair: one.pair, looked: before };
    }
    const before = decisions.get(one.id);
    if (one.said) decisions.set(one.id, one.said); else decisions.delete(one.id);
    return { id: one.id, said: before };
  });
}

function decide(decision, category) {
  const position = currentPosition();
  if (position < 0) return;
  const said = category === undefined ? { decision } : { decision, category_id: category };
  change([{ id: proposals[position].id, said }], position);
  advance();
  show();
}

function decideRest(decision) {
  if (mode !== "whole" || !items.length) return;
  const rest = pairMembers().filter(undecided);
  if (!rest.length) return say("Nothing is undecided here.");
  change(rest.map((position) => ({ id: proposals[position].id, said: { decision } })), rest[0]);
  say(rest.length + (decision === "accept" ? " accepted." : " rejected."));
  show();
}

function toggleLooked(pair) {
  if (pair === null) return;
  change([{ pair, looked: !looked.has(pair) }], currentPosition());
  show();
}

function undo() {
  const last = undoStack.pop();
  if (!last) return say("There is nothing to undo.");
  apply([...last.changes].reverse());
  unsaved = true;
  remember();
  if (last.position >= 0 && !select(last.position)) say("Undone, outside of the filters.");
  else say("Undone.");
  show();
}

// ---- saving and loading ----------------------------------------------------------------------

function decisionFile() {
  const said = proposals.filter((one) => decisions.has(one.id)).map(({ id }) => {
    const corrected = boxes.has(id) && decisions.get(id).decision !== "reject";
    return { id, ...decisions.get(id), ...(corrected ? { bbox: boxes.get(id) } : {}) };
  });
  return { version: 1, proposals: data.hash, decisions: said, looked_through: lookedPairs() };
}

const counted = (count, one, several) => count + " " + (count === 1 ? one : several || one + "s");

function save() {
  const text = JSON.stringify(decisionFile(), null, 1) + "\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "decisions.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  const without = [...boxes.keys()].filter((id) => !decisions.has(id)).length;
  unsaved = without > 0;
  remember();
  say(counted(decisions.size, "decision") + " saved as decisions.json." + (without
    ? " Not in it: " + counted(without, "corrected box", "corrected boxes") + " without a decision." : ""), without > 0);
  show();
}

function problemOf(content) {
  if (content === null || typeof content !== "object" || !Array.isArray(content.decisions)
      || content.version !== 1) return "this is no decisions.json";
  if (content.proposals !== data.hash) return "its decisions are on other proposals";
  if (!Array.isArray(content.looked_through || [])) return "this is no decisions.json";
  for (const one of [...content.decisions, ...(content.looked_through || [])]) {
    if (one === null || typeof one !== "object") return "this is no decisions.json";
  }
  for (const one of content.decisions) {
    if (!positionOf.has(one.id)) return "proposal " + one.id + " is not on this page";
    if (!Object.hasOwn(MARKS, one.decision)) return "proposal " + one.id + " has no decision";
    if (one.decision === "class" && !labelOf.has(one.category_id)) {
      return "proposal " + one.id + " is of no class of this page";
    }
    if (one.bbox && (one.decision === "reject" || !isBox(one.bbox))) {
      return "proposal " + one.id + " has no such box";
    }
  }
  return "";
}

function load(text) {
  let content;
  try {
    content = JSON.parse(text);
  } catch (error) {
    return say("Not loaded: it is no JSON file.", true);
  }
  const problem = problemOf(content);
  if (problem) return say("Not loaded: " + problem + ".", true);
  const changes = content.decisions.map(({ id, decision, category_id: category }) =>
    ({ id, said: decision === "class" ? { decision, category_id: category } : { decision } }));
  const differs = (one) => String(boxes.get(one.id) || "") !== String(one.bbox || "");
  const taken = content.decisions.filter((one) => one.decision !== "reject");
  for (const { id, bbox } of taken) changes.push({ boxOf: id, box: bbox || undefined });
  for (const pair of pairsOf(content.looked_through || [])) changes.push({ pair, looked: true });
  const replaced = content.decisions.filter((one) => {
    const mine = decisions.get(one.id);
    if (mine && (mine.decision !== one.decision || mine.category_id !== one.category_id)) return true;
    return (mine || boxes.has(one.id)) && one.decision !== "reject" && differs(one);
  }).length;
  change(changes, currentPosition());
  say(counted(content.decisions.length, "decision") + " loaded"
    + (replaced ? ", " + replaced + " of yours replaced (U takes that back)." : "."));
  show();
}

// ---- drawing ---------------------------------------------------------------------------------

function element(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (parent) parent.append(made);
  return made;
}

function kindOf(position) {
  const said = decisions.get(proposals[position].id);
  if (!said) return "waiting";
  return { accept: "accepted", reject: "rejected", class: "changed" }[said.decision];
}

// Proposals below this probability are drawn faintly until they are looked at.
const UNLIKELY = 0.1;

function drawBox(parent, kind, [x, y, width, height], words, scale, choose, { wider = 0, faint = false } = {}) {
  const { colour, dash, width: thin } = KINDS[kind];
  const stroke = thin + wider;
  const place = { x, y, width, height };
  const svg = faint ? element("g", { class: "faint" }, parent) : parent;
  element("rect", { ...place, class: "rim", "stroke-width": stroke + 2 }, svg);
  element("rect", { ...place, class: "box", stroke: colour, "stroke-width": stroke,
    "stroke-dasharray": dash, "data-kind": kind }, svg);
  if (words) {
    const size = 12.5 / scale;
    const label = element("text", { x: x + 2 / scale, "font-size": size,
      fill: kind === "accepted" || kind === "rejected" ? "#ffffff" : colour,
      "stroke-width": 3 / scale, y: y > size * 1.4 ? y - 4 / scale : y + size * 1.1 }, svg);
    label.textContent = words;
  }
  if (choose) {
    const hit = element("rect", { ...place, class: "hit" }, svg);
    hit.addEventListener("click", choose);
  }
}

// The part of an image around a box: a square that stays inside of it where it fits.
function around([x, y, width, height], image, factor) {
  const longer = Math.max(image.width, image.height);
  const side = Math.min(longer, Math.max(Math.max(width, height) * factor, longer / 40, 8));
  const inside = (centre, length) => side >= length ? (length - side) / 2
    : Math.min(Math.max(centre - side / 2, 0), length - side);
  return [inside(x + width / 2, image.width), inside(y + height / 2, image.height), side, side];
}

function draw(svg, position, view, captions) {
  const proposal = proposals[position];
  const image = images[proposal.image];
  svg.replaceChildren();
  svg.setAttribute("viewBox", view.join(" "));
  const frame = svg.getBoundingClientRect();
  const scale = Math.min(frame.width / view[2], frame.height / view[3]) || 1;
  const place = { x: 0, y: 0, width: image.width, height: image.height, preserveAspectRatio: "none" };
  const picture = element("image", { ...place, class: "picture" }, svg);
  picture.addEventListener("load", firstPicture, { once: true });
  picture.setAttribute("href", image.seen || image.thumbnail);
  const few = image.annotations.length <= 20;
  for (const { label, box, ignored } of image.annotations) {
    const name = label < 0 ? "every class" : classes[label].name;
    drawBox(svg, ignored ? "ignored" : "annotated", box, captions && few ? name : "", scale);
  }
  const together = mode === "whole" ? pairMembers() : null;
  const others = image.proposals.filter((other) => other !== position);
  for (const other of others) {
    // One at a time: other proposals that nobody has decided would only be in the way.
    const kind = kindOf(other);
    if (kind === "waiting" && !(together && together.includes(other))) continue;
    if (kind === "rejected" && !(together && together.includes(other))) continue;
    const number = together && together.includes(other) ? together.indexOf(other) + 1 + " " : "";
    // Undecided ones are of the class that is looked at, and dozens in a crowded image.
    const words = kind === "waiting" ? number : number + caption(other);
    drawBox(svg, kind, boxOf(other), captions ? words : "", scale,
      captions ? () => { if (select(other)) show(); } : null,
      { faint: kind === "waiting" && proposals[other].probability < UNLIKELY });
  }
  const number = together ? together.indexOf(position) + 1 + " " : "";
  const said = decisions.get(proposal.id);
  const box = shownBox(position);
  drawBox(svg, said ? kindOf(position) : "current", box, captions ? number + caption(position) : "",
    scale, null, { wider: 1.5 });
  drawHandles(svg, box, scale);
}

function drawHandles(svg, [x, y, width, height], scale) {
  const side = (editing ? 9 : 6) / scale;
  for (const [left, top] of [[x, y], [x + width, y], [x, y + height], [x + width, y + height]]) {
    const place = { x: left - side / 2, y: top - side / 2, width: side, height: side };
    element("rect", { ...place, class: "handle" }, svg);
  }
}

function caption(position) {
  const said = decisions.get(proposals[position].id);
  if (!said) return classes[proposals[position].label].name + "?";
  const label = said.decision === "class" ? labelOf.get(said.category_id) : proposals[position].label;
  return MARKS[said.decision] + " " + classes[label].name;
}

// The thumbnail is there at once; the picture itself follows where it can be loaded.
function loadFull(position) {
  const image = images[proposals[position].image];
  if (!image.full || image.asked) return;
  image.asked = true;
  const full = new Image();
  full.addEventListener("load", () => {
    if (full.naturalWidth < full.naturalHeight !== image.width < image.height) return;
    image.seen = image.full;
    const now = currentPosition();
    if (now < 0 || images[proposals[now].image] !== image) return;
    for (const picture of document.querySelectorAll("image.picture")) {
      picture.setAttribute("href", image.full);
    }
  });
  full.src = image.full;
}

function preload() {
  for (const ahead of [1, 2, 3]) {
    const item = items[index + ahead];
    if (item === undefined) return;
    const position = mode === "single" ? item : shownMembers.get(item)[0];
    new Image().src = images[proposals[position].image].thumbnail;
  }
}

let shown = -1; // position
const views = {}; // of the two pictures: the part of the image that they show

let seenFirst = false;
function firstPicture() {
  if (seenFirst) return;
  seenFirst = true;
  performance.mark("first-picture");
}

function text(parent, tag, words, name) {
  const made = document.createElement(tag);
  made.textContent = words;
  if (name) made.className = name;
  parent.append(made);
  return made;
}

function saidInWords(said, corrected) {
  if (!said) return corrected ? "Box corrected, not decided yet" : "Not decided yet";
  if (said.decision === "reject") return "✕ Rejected";
  const words = said.decision === "accept" ? "✓ Accepted"
    : "⇄ It is: " + classes[labelOf.get(said.category_id)].name;
  return corrected ? words + ", box corrected" : words;
}

function show() {
  const position = currentPosition();
  const empty = position < 0;
  if (position !== shown) {
    editing = false;
    drag = null;
  }
  shown = position;
  byId("nothing").hidden = !empty;
  document.body.classList.toggle("whole", mode === "whole");
  for (const id of ["accept", "reject", "other", "previous", "next", "looked"]) byId(id).disabled = empty;
  byId("undo").disabled = !undoStack.length;
  showProgress();
  showList();
  if (empty) {
    byId("stage").replaceChildren();
    byId("closeup").replaceChildren();
    for (const id of ["caption-file", "caption-place", "class-name", "decision"]) byId(id).textContent = "";
    byId("numbers").replaceChildren();
    byId("others").hidden = true;
    return;
  }
  const proposal = proposals[position];
  const image = images[proposal.image];
  const pair = currentPair();
  const whole = [0, 0, image.width, image.height];
  if (!drag) {
    views.stage = zoomed ? around(boxOf(position), image, 3) : whole;
    views.closeup = around(boxOf(position), image, 1.7);
  }
  drawPictures(position);
  byId("stage").setAttribute("aria-label", image.name + ", " + classes[proposal.label].name);
  byId("caption-file").textContent = image.name;
  byId("caption-file").title = image.name;
  byId("caption-place").textContent = (index + 1) + " of " + items.length
    + (mode === "whole" ? ", box " + (member + 1) + " of " + pairMembers().length : "");
  byId("class-name").textContent = classes[proposal.label].name;
  const said = decisions.get(proposal.id);
  byId("decision").textContent = saidInWords(said, boxes.has(proposal.id));
  byId("decision").className = said ? said.decision : "";
  byId("probability-bar").firstElementChild.style.width = 100 * proposal.probability + "%";
  const facts = [
    ["Probability", proposal.probability.toFixed(2)],
    ["Score", proposal.score.toFixed(2)],
    ["Box", sizeInWords(position)],
    ["Image", image.width + " × " + image.height + " px"],
    ["This class here", pairInWords(pair)],
  ];
  const rate = classes[proposal.label].rate;
  if (rate) {
    const percent = (share) => Math.round(100 * share);
    facts.push(["Class annotated", percent(rate[0]) + " % (" + percent(rate[1]) + "–" + percent(rate[2]) + ")"]);
  }
  byId("numbers").replaceChildren();
  for (const [name, value] of facts) {
    text(byId("numbers"), "dt", name);
    text(byId("numbers"), "dd", value).id = name === "Box" ? "box-size" : "";
  }
  byId("looked").setAttribute("aria-pressed", String(looked.has(pair)));
  byId("others").hidden = false;
  if (byId("others").open) showOtherClasses();
  loadFull(position);
  preload();
}

// While a box is dragged, nothing else moves.
function drawPictures(position) {
  draw(byId("stage"), position, views.stage, true);
  draw(byId("closeup"), position, views.closeup, false);
}

const shownBox = (position) => drag && drag.position === position ? drag.box : boxOf(position);
const sizeInWords = (position) => shownBox(position).slice(2).map(Math.round).join(" × ") + " px";

function pairInWords(pair) {
  if (looked.has(pair)) return "looked through";
  const mine = members.get(pair);
  const done = mine.filter((position) => !undecided(position)).length;
  return done + " of " + mine.length + " decided";
}

function showOtherClasses() {
  const image = proposals[currentPosition()].image;
  const box = byId("other-classes");
  box.replaceChildren();
  classes.forEach((one, label) => {
    const key = pairKey(image, label);
    const line = text(box, "label", "");
    const tick = document.createElement("input");
    tick.type = "checkbox";
    tick.checked = looked.has(key) || complete.has(key);
    tick.disabled = complete.has(key);
    tick.addEventListener("change", () => toggleLooked(key));
    line.append(tick);
    text(line, "span", one.name + (complete.has(key) ? " (known to be complete)" : ""));
  });
}

function showProgress() {
  const all = proposals.length;
  const done = decisions.size;
  byId("progress-text").textContent = done + " of " + all + " decided";
  byId("bar-fill").style.width = all ? 100 * done / all + "%" : "0";
  byId("bar").setAttribute("aria-valuemax", all);
  byId("bar").setAttribute("aria-valuenow", done);
  byId("save").textContent = unsaved ? "Save decisions •" : "Save decisions";
}

// Only the rows that can be seen are in the page.
function showList() {
  const list = byId("list");
  const top = index * ROW;
  if (list.clientHeight && (top < list.scrollTop || top + ROW > list.scrollTop + list.clientHeight)) {
    list.scrollTop = top - list.clientHeight / 2 + ROW / 2;
  }
  drawRows();
}

function drawRows() {
  const list = byId("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 2);
  const last = Math.min(items.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 2);
  const rows = [];
  for (let at = first; at < last; at++) rows.push(row(at));
  byId("list-space").replaceChildren(...rows);
}

function row(at) {
  const mine = mode === "single" ? [items[at]] : shownMembers.get(items[at]);
  const proposal = proposals[mine[0]];
  const image = images[proposal.image];
  const made = document.createElement("div");
  made.className = "row";
  made.style.top = at * ROW + "px";
  made.setAttribute("role", "option");
  made.setAttribute("aria-selected", String(at === index));
  const crop = text(made, "div", "", "crop");
  const [x, y, side] = around(proposal.box, image, 1.5);
  const scale = 48 / side;
  crop.style.backgroundImage = `url("${image.thumbnail}")`;
  crop.style.backgroundSize = `${image.width * scale}px ${image.height * scale}px`;
  crop.style.backgroundPosition = `${-x * scale}px ${-y * scale}px`;
  const words = text(made, "div", "");
  text(words, "b", classes[proposal.label].name);
  const pair = pairKey(proposal.image, proposal.label);
  const numbers = mode === "single" ? "p " + proposal.probability.toFixed(2)
    : members.get(pair).filter((position) => !undecided(position)).length + "/" + members.get(pair).length;
  text(words, "small", numbers + " · " + image.name);
  const said = decisions.get(proposal.id);
  if (mode === "single") text(made, "span", said ? MARKS[said.decision] : "", "mark " + (said ? said.decision : ""));
  else {
    const done = looked.has(pair) || !members.get(pair).some(undecided);
    text(made, "span", done ? "✓" : "", "mark accept");
  }
  made.addEventListener("click", () => {
    index = at;
    member = 0;
    openList(false);
    show();
  });
  return made;
}

let messageTimer = 0;
function say(words, bad) {
  const message = byId("message");
  message.textContent = words;
  message.className = bad ? "shown bad" : "shown";
  clearTimeout(messageTimer);
  messageTimer = setTimeout(() => { message.className = ""; }, bad ? 8000 : 2200);
}

// ---- correcting a box ------------------------------------------------------------------------

const SMALLEST = 1; // px, of the sides of a box
const CURSORS = { "1,0": "ew-resize", "0,1": "ns-resize", "1,1": "nwse-resize", "-1,1": "nesw-resize" };

// A point of the screen in pixels of the image, and how many pixels of the screen one of them is.
function inImage(svg, event) {
  const matrix = svg.getScreenCTM();
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
  return { x: at.x, y: at.y, scale: matrix.a };
}

// Which edges of the current box are at a point: -1 left or top, 1 right or bottom, 0 neither.
function edgesAt(svg, event) {
  const { x, y, scale } = inImage(svg, event);
  const [left, top, width, height] = boxOf(currentPosition());
  const reach = (event.pointerType === "touch" ? 16 : 7) / scale;
  const near = (at, low, length) => {
    if (at < low - reach || at > low + length + reach) return null;
    const far = Math.abs(at - low - length);
    if (Math.min(far, Math.abs(at - low)) > reach) return 0;
    return far <= Math.abs(at - low) ? 1 : -1;
  };
  const edges = [near(x, left, width), near(y, top, height)];
  return edges.includes(null) || !(edges[0] || edges[1]) ? null : edges;
}

// A box inside of its image, in hundredths of a pixel.
function fitted([x1, y1, x2, y2], image) {
  const round = (value) => Math.round(100 * value) / 100;
  const side = (from, to, length) => {
    const low = round(Math.min(Math.max(from, 0), length - SMALLEST));
    return [low, round(Math.max(Math.min(to, length) - low, SMALLEST))];
  };
  const [x, width] = side(x1, x2, image.width);
  const [y, height] = side(y1, y2, image.height);
  return [x, y, width, height];
}

const cornersOf = ([x, y, width, height]) => [x, y, x + width, y + height];
const imageAt = (position) => images[proposals[position].image];
const insideOf = (position) => fitted(cornersOf(boxOf(position)), imageAt(position));

function dragTo(event) {
  if (!drag.moved) {
    // Less is a click that has trembled.
    if (Math.hypot(event.clientX - drag.screen.x, event.clientY - drag.screen.y) < 3) return;
    drag.moved = true;
  }
  const { x, y } = inImage(drag.svg, event);
  const corners = cornersOf(drag.start);
  const move = [x - drag.from.x, y - drag.from.y];
  drag.edges.forEach((edge, axis) => {
    if (edge < 0) corners[axis] = Math.min(corners[axis] + move[axis], corners[axis + 2] - SMALLEST);
    if (edge > 0) corners[axis + 2] = Math.max(corners[axis + 2] + move[axis], corners[axis] + SMALLEST);
  });
  drag.box = fitted(corners, imageAt(drag.position));
  drawPictures(drag.position);
  byId("box-size").textContent = sizeInWords(drag.position);
}

function endDrag(keep) {
  const { box, position, moved } = drag;
  drag = null;
  if (!moved) return;
  if (keep) change([{ boxOf: proposals[position].id, box }], position);
  show();
}

function nudge(dx, dy, resize) {
  const position = currentPosition();
  if (position < 0) return;
  const image = imageAt(position);
  const by = Math.max(Math.max(image.width, image.height) / 500, 0.5);
  const before = insideOf(position);
  const [x1, y1, x2, y2] = cornersOf(before);
  const within = (value, low, high) => Math.min(Math.max(value, low), high);
  const right = within(dx * by, -x1, image.width - x2);
  const down = within(dy * by, -y1, image.height - y2);
  const box = fitted(resize ? [x1, y1, Math.max(x2 + dx * by, x1 + SMALLEST), Math.max(y2 + dy * by, y1 + SMALLEST)]
    : [x1 + right, y1 + down, x2 + right, y2 + down], image);
  if (String(box) === String(before)) return;
  change([{ boxOf: proposals[position].id, box }], position, "correction " + correction);
  show();
}

function toggleEditing() {
  if (currentPosition() < 0) return;
  editing = !editing;
  correction++;
  say(editing ? "Arrows move the box, with Shift its lower right corner. E or Esc ends this."
    : "Arrows go from proposal to proposal again.");
  show();
}

function asProposed() {
  const position = currentPosition();
  if (position < 0) return;
  const { id } = proposals[position];
  if (!boxes.has(id)) return say("The box is as it was proposed.");
  change([{ boxOf: id, box: undefined }], position);
  say("The box is as it was proposed.");
  show();
}

for (const id of ["stage", "closeup"]) {
  const svg = byId(id);
  svg.addEventListener("pointerdown", (event) => {
    // A finger on the large picture scrolls the page.
    if (drag || event.button || currentPosition() < 0 || (id === "stage" && event.pointerType === "touch")) return;
    const edges = edgesAt(svg, event);
    if (!edges) return;
    event.preventDefault();
    document.activeElement.blur(); // keys are for the page
    const position = currentPosition();
    const start = insideOf(position);
    drag = { svg, pointer: event.pointerId, position, edges, start, box: start, moved: false,
      from: inImage(svg, event), screen: { x: event.clientX, y: event.clientY } };
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", (event) => {
    if (drag && drag.pointer === event.pointerId) return event.buttons ? dragTo(event) : endDrag(true);
    const edges = currentPosition() < 0 ? null : edgesAt(svg, event);
    const [across, down] = edges || [];
    svg.style.cursor = !edges ? "" : CURSORS[across && down ? across * down + ",1" : Math.abs(across) + "," + Math.abs(down)];
  });
  const end = (keep) => (event) => { if (drag && drag.pointer === event.pointerId) endDrag(keep); };
  svg.addEventListener("pointerup", (event) => {
    const clicked = drag && drag.pointer === event.pointerId && !drag.moved;
    end(true)(event);
    // The capture keeps a click from the box of another proposal under the edge.
    const under = clicked && document.elementFromPoint(event.clientX, event.clientY);
    if (under && under.matches(".hit")) under.dispatchEvent(new MouseEvent("click"));
  });
  svg.addEventListener("pointercancel", end(false));
  svg.addEventListener("lostpointercapture", end(true));
}

// ---- choosing a class ------------------------------------------------------------------------

let options = []; // labels that fit what was typed
let marked = 0;

function openChooser() {
  if (currentPosition() < 0) return;
  byId("chooser-text").value = "";
  offer();
  byId("chooser").showModal();
  byId("chooser-text").focus();
}

function offer() {
  const typed = byId("chooser-text").value.trim().toLowerCase();
  const own = proposals[currentPosition()].label;
  const all = classes.map((one, label) => label).filter((label) => label !== own);
  const name = (label) => classes[label].name.toLowerCase();
  const exact = all.filter((label) => String(label + 1) === typed || name(label) === typed);
  const begins = all.filter((label) => name(label).startsWith(typed)
    || (DIGITS.test(typed) && String(label + 1).startsWith(typed)));
  const holds = all.filter((label) => name(label).includes(typed));
  options = [...new Set([...exact, ...begins, ...holds])];
  marked = 0;
  showOptions();
}

function showOptions() {
  const box = byId("chooser-list");
  box.replaceChildren();
  const own = classes[proposals[currentPosition()].label].name;
  if (!options.length) text(box, "p", "No other class fits. It is proposed as " + own + ": Esc, then A accepts it.", "note");
  options.forEach((label, at) => {
    const line = text(box, "div", "", "option");
    line.setAttribute("role", "option");
    line.setAttribute("aria-selected", String(at === marked));
    text(line, "span", label + 1);
    text(line, "span", classes[label].name);
    line.addEventListener("click", () => choose(label));
    if (at === marked) line.scrollIntoView({ block: "nearest" });
  });
}

function choose(label) {
  byId("chooser-text").blur(); // keys are for the page again at once
  byId("chooser").close();
  decide("class", classes[label].id);
}

byId("chooser-text").addEventListener("input", () => {
  offer();
  const typed = byId("chooser-text").value.trim();
  // With nine classes or fewer a digit leaves no doubt.
  if (DIGITS.test(typed) && classes.length <= 9) {
    const label = Number(typed) - 1;
    if (options.includes(label) && options[0] === label) choose(label);
  }
});
byId("chooser-text").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    marked = Math.min(Math.max(marked + (event.key === "ArrowDown" ? 1 : -1), 0), options.length - 1);
    showOptions();
  } else if (event.key === "Enter") {
    if (options.length) choose(options[marked]);
  } else return;
  event.preventDefault();
});

// ---- controls --------------------------------------------------------------------------------

function setMode(to) {
  if (mode === to) return;
  const position = currentPosition();
  mode = to;
  byId("mode-single").setAttribute("aria-pressed", String(mode === "single"));
  byId("mode-whole").setAttribute("aria-pressed", String(mode === "whole"));
  refilter(position);
}

const THEMES = { auto: "Auto", light: "Light", dark: "Dark" };
function setTheme(theme) {
  const known = Object.hasOwn(THEMES, theme) ? theme : "auto";
  document.documentElement.dataset.theme = known;
  byId("theme").textContent = "Theme: " + THEMES[known];
  try {
    localStorage.setItem(THEME, known);
  } catch (error) { /* the next visit begins with the system's colours */ }
}
function nextTheme() {
  const names = Object.keys(THEMES);
  setTheme(names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length]);
}

function openList(open) {
  document.body.classList.toggle("list-open", open);
  byId("show-list").setAttribute("aria-expanded", String(open));
  if (open) showList();
}

document.addEventListener("click", (event) => {
  if (!event.target.closest("#list-pane, #show-list")) openList(false);
});

function openFilters() {
  const open = document.body.classList.toggle("filters-open");
  byId("show-filters").setAttribute("aria-expanded", String(open));
}

const actions = {
  "show-filters": openFilters,
  accept: () => decide("accept"),
  reject: () => decide("reject"),
  other: openChooser,
  undo,
  next: () => step(1),
  previous: () => step(-1),
  looked: () => toggleLooked(currentPair()),
  save,
  load: () => byId("load-file").click(),
  theme: nextTheme,
  "accept-rest": () => decideRest("accept"),
  "reject-rest": () => decideRest("reject"),
  "mode-single": () => setMode("single"),
  "mode-whole": () => setMode("whole"),
  "show-help": () => byId("help").showModal(),
  "show-list": () => openList(!document.body.classList.contains("list-open")),
};
for (const [id, action] of Object.entries(actions)) {
  byId(id).addEventListener("click", (event) => {
    event.currentTarget.blur(); // keys are for the page
    action();
  });
}

const keys = {
  a: actions.accept, A: actions["accept-rest"], r: actions.reject, x: actions.reject,
  R: actions["reject-rest"], c: openChooser, u: undo, l: actions.looked, s: save, t: nextTheme,
  g: () => setMode(mode === "single" ? "whole" : "single"),
  z: () => { zoomed = !zoomed; show(); },
  n: actions.next, p: actions.previous, " ": actions.next,
  ArrowRight: actions.next, ArrowLeft: actions.previous,
  ArrowDown: () => stepMember(1), ArrowUp: () => stepMember(-1),
  "?": actions["show-help"], e: toggleEditing, E: asProposed, Escape: () => openList(false),
};
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  // A dialog that Escape has just closed keeps the focus until the page is drawn again.
  const target = event.target.closest("dialog") ? document.body : event.target;
  const types = target.matches("select, textarea, input:not([type=checkbox])");
  if (event.key === "Escape" && types) target.blur();
  if (types || event.altKey) return;
  if (drag) {
    if (event.key === "Escape") endDrag(false);
    return;
  }
  if (event.ctrlKey || event.metaKey) {
    if (event.key === "z") { event.preventDefault(); undo(); }
    return;
  }
  if (event.key === " " && target.matches("button, summary, input")) return;
  if (editing && event.key === "Escape") return toggleEditing();
  if (editing && ARROWS[event.key]) {
    event.preventDefault();
    return nudge(...ARROWS[event.key], event.shiftKey);
  }
  const letter = event.shiftKey ? event.key.toUpperCase() : event.key.toLowerCase(); // whatever Caps Lock
  const action = keys[event.key.length === 1 ? letter : event.key];
  if (!action || (event.repeat && !event.key.startsWith("Arrow"))) return;
  event.preventDefault();
  action();
});

for (const id of ["filter-class", "filter-low", "filter-high", "filter-state"]) {
  byId(id).addEventListener("change", () => {
    refilter(currentPosition());
    if (byId(id).matches("select")) byId(id).blur();
  });
}
byId("load-file").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  if (file) load(await file.text());
  event.target.value = "";
});
byId("others").addEventListener("toggle", () => { if (currentPosition() >= 0) showOtherClasses(); });
byId("list").addEventListener("scroll", drawRows, { passive: true });
window.addEventListener("resize", show);
// The same page in another tab.
window.addEventListener("storage", (event) => {
  if (event.key !== STORE) return;
  recall();
  show();
});

// ---- start -----------------------------------------------------------------------------------

byId("title").textContent = data.title;
document.title = data.title + " – review";
const counts = classes.map(() => 0);
for (const proposal of proposals) counts[proposal.label]++;
const everything = text(byId("filter-class"), "option", "all (" + proposals.length + ")");
everything.value = "";
classes.forEach((one, label) => {
  if (counts[label]) text(byId("filter-class"), "option", one.name + " (" + counts[label] + ")").value = label;
});
for (const [key, words] of KEYS) {
  const line = text(byId("help-keys"), "tr", "");
  text(text(line, "td", ""), "kbd", key);
  text(line, "td", words);
}
for (const [kind, { words, colour, dash, width }] of Object.entries(KINDS)) {
  const line = text(byId("legend"), "li", "");
  const sample = element("svg", { viewBox: "0 0 34 14" }, line);
  element("line", { x1: 3, x2: 31, y1: 7, y2: 7, stroke: colour,
    "stroke-width": kind === "current" ? 2 * width : width, "stroke-dasharray": dash }, sample);
  text(line, "span", words);
}
let theme = "auto";
try {
  theme = localStorage.getItem(THEME) || "auto";
} catch (error) { /* a browser that keeps nothing */ }
setTheme(theme);
recall();
refilter(-1);
const start = items.findIndex(undecided); // go on where the last visit ended
if (start > 0) {
  index = start;
  show();
}
})();
