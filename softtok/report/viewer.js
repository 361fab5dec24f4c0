// The viewer of answers and thoughts. Parts are unpacked when they are looked at.
(() => {
  "use strict";
  const place = document.getElementById("viewer");
  if (!place) return;
  const index = JSON.parse(document.getElementById("viewer-index").textContent);
  const make = (tag, settings = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), settings);
    node.append(...children);
    return node;
  };

  const unpacked = new Map();
  const unpack = (name) => {
    if (!unpacked.has(name)) unpacked.set(name, read(name));
    return unpacked.get(name);
  };
  const read = async (name) => {
    const packed = document.getElementById(`part-${name}`);
    if (!packed) return null;
    const bytes = Uint8Array.from(atob(packed.textContent.trim()), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  };

  const gaveUp = ["timeout", "error"];
  const outcomes = {
    right: (sample) => sample[0] === 1,
    wrong: (sample) => sample[0] === 0 && ["wrong", "unparsed"].includes(sample[1]),
    unboxed: (sample) => ["unboxed", "too_long"].includes(sample[1]),
    "cut off": (sample) => sample[2] === "cap",
    refused: (sample) => sample[1] === "refused",
    "gave up": (sample) => gaveUp.includes(sample[1]),
  };
  const several = (key) => new Set(index.runs.map((run) => run[key]).filter((name) => name !== "none")).size > 1;
  const nameOf = (run) => [run.mode, ...(run.mode === "base" ? [] : [`seed ${run.seed}`]),
    ...(several("model") ? [run.model] : []), ...(run.train !== "none" && several("train") ? [run.train] : [])].join(", ");

  // The controls.
  const select = (label, name) => {
    const node = make("select", { name });
    return [node, make("label", {}, label, node)];
  };
  const fill = (node, options) => {
    const before = node.value;
    node.replaceChildren(...options.map(([value, text]) => make("option", { value, textContent: text })));
    if (options.some(([value]) => value === before)) node.value = before;
  };
  const [setBox, setLabel] = select("test set", "viewer-set");
  const [runBox, runLabel] = select("run", "viewer-run");
  const [modeBox, modeLabel] = select("inference mode", "viewer-mode");
  const [problemsBox, problemsLabel] = select("problems", "viewer-problems");
  const search = make("input", { type: "search", name: "viewer-search", placeholder: "in question, CoT and answer" });
  const boxes = Object.keys(outcomes).map((name) => [name, make("input", { type: "checkbox", name: `viewer-${name}`, checked: true })]);
  const answers = make("fieldset", {}, make("legend", { textContent: "answers" }),
    ...boxes.map(([name, box]) => make("label", {}, box, name)));
  const list = make("select", { size: 8, name: "viewer-problem", ariaLabel: "Problem" });
  const count = make("p", { className: "caption", role: "status" });
  const shown = make("div", { className: "shown" });
  place.append(
    make("div", { className: "tools" }, setLabel, runLabel, modeLabel, problemsLabel, make("label", {}, "search", search), answers),
    make("div", { className: "beside" }, make("div", {}, list, count), shown),
  );
  place.hidden = false;

  const of = () => index.sets[setBox.value];
  const right = (mode, run, problem) => of().solved[mode]?.[run]?.[problem];
  const sibling = (wanted) => {
    const run = index.runs[+runBox.value];
    const fits = (other) => other.model === run.model && other.mode === wanted && (wanted === "base" || (other.train === run.train && other.seed === run.seed));
    return index.runs.findIndex(fits);
  };
  const contrasts = () => {
    const found = [["all", "all"], ["some", "solved here, by some sample"], ["none", "solved here by no sample"]];
    for (const other of new Set(index.runs.map((run) => run.mode))) {
      if (other === index.runs[+runBox.value].mode || !of().solved[modeBox.value]?.[sibling(other)]) continue;
      found.push([`+${other}`, `${other} right where this is wrong`], [`-${other}`, `this right where ${other} is wrong`]);
    }
    for (const mode of Object.keys(of().solved)) {
      if (mode === modeBox.value || !of().solved[mode][+runBox.value]) continue;
      found.push([`>${mode}`, `${mode} right where ${modeBox.value} is wrong`]);
    }
    return found;
  };
  const wanted = (problem) => {
    const [kind, name] = [problemsBox.value[0], problemsBox.value.slice(1)];
    const here = right(modeBox.value, +runBox.value, problem) > 0;
    const there = kind === ">" ? right(name, +runBox.value, problem) > 0 : right(modeBox.value, sibling(name), problem) > 0;
    if (problemsBox.value === "all") return true;
    if (problemsBox.value === "some" || problemsBox.value === "none") return here === (problemsBox.value === "some");
    return kind === "-" ? here && !there : there && !here;
  };
  const kept = (sample) => {
    const of = boxes.filter(([name]) => outcomes[name](sample));
    return of.length === 0 || of.some(([, box]) => box.checked);
  };

  let samples = null;
  let thoughts = null;
  let turn = 0;
  const load = async () => {
    const mine = ++turn;
    const loaded = await Promise.all(["samples", "thoughts"].map((what) => unpack(`${what}-${runBox.value}-${setBox.value}`)));
    if (mine !== turn) return;
    [samples, thoughts] = loaded;
    const modes = Object.keys(samples ?? {});
    fill(modeBox, modes.map((mode) => [mode, mode]));
    fill(problemsBox, contrasts());
    listProblems();
  };
  const listProblems = () => {
    const words = search.value.toLowerCase();
    const before = list.value;
    const found = of().problems.map((problem, number) => [number, problem]).filter(([number, [id, question]]) => {
      const those = samples?.[modeBox.value]?.[number] ?? [];
      if (!wanted(number) || !those.some(kept)) return false;
      return !words || [id, question, ...those.flatMap((sample) => sample.slice(4))].some((text) => text.toLowerCase().includes(words));
    });
    const drawn = of().drawn[modeBox.value];
    fill(list, found.map(([number, [id, question]]) => [String(number), `${right(modeBox.value, +runBox.value, number)} of ${drawn} right  ${thoughts?.[modeBox.value]?.[number] ? "◐ " : ""}${id}  ${question.slice(0, 60)}`]));
    if (list.selectedIndex < 0 && found.length) list.selectedIndex = 0;
    if (found.some(([number]) => String(number) === before)) list.value = before;
    const marks = Object.keys(thoughts?.[modeBox.value] ?? {}).length ? " ◐: with its thoughts." : "";
    count.textContent = `${found.length} of ${of().problems.length} problems.${marks}`;
    showProblem();
  };

  // One problem: its question, gold and samples.
  const shade = (entropy) => `color-mix(in srgb, var(--series-1) ${Math.round(Math.min(1, entropy / 3) * 42)}%, transparent)`;
  const told = ([, entropy, moved, tokens, weights], number) => [
    `step ${number + 1}: entropy ${entropy.toFixed(2)} nats`,
    ...tokens.map((token, place) => `${(100 * weights[place]).toFixed(1).padStart(5)} %  ${JSON.stringify(token).slice(1, -1)}`),
    `moved by noise: ${moved.toFixed(2)} of an embedding's length`,
  ].join("\n");
  const thought = (steps) => {
    const line = make("div", { className: "thought", role: "group", ariaLabel: "Steps of thinking, arrow keys go along them" });
    line.append(...steps.map((step, number) => {
      const node = make("span", { className: "step", tabIndex: number ? -1 : 0, textContent: step[0] || "∅" });
      node.style.background = shade(step[1]);
      node.dataset.tip = told(step, number);
      return node;
    }));
    line.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const next = way && line.children[[...line.children].indexOf(event.target) + way];
      if (!next) return;
      event.preventDefault();
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
    return line;
  };
  const stops = { phrase: "ended by the stop phrase", eos: "ended by EOS", cap: "cut off", entropy: "ended as the model was sure" };
  const told_of = ([correct, status, stop, tokens]) => `${correct ? "✓ right" : `✗ ${status.replace("_", " ")}`} · CoT of ${tokens} tokens, ${stops[stop] ?? stop}`;
  const showProblem = () => {
    const number = list.value;
    if (number === "") return shown.replaceChildren(make("p", { className: "caption", textContent: "No problem fits." }));
    const [id, question, gold] = of().problems[+number];
    const those = samples[modeBox.value][+number];
    const steps = thoughts?.[modeBox.value]?.[number] ?? {};
    const items = those.map((sample, place) => [sample, place]).filter(([sample]) => kept(sample)).map(([sample, place]) => make("li", { value: place },
      make("p", { className: `head ${sample[0] ? "right" : "not-right"}`, textContent: told_of(sample) }),
      steps[place] ? thought(steps[place]) : make("div", { className: "cot", textContent: sample[4] }),
      make("div", { className: "answer", textContent: sample[5] })));
    const legend = Object.keys(steps).length ? [make("p", { className: "caption", textContent: "Shaded: the entropy of the next-token distribution, up to 3 nats. Point at a step, or go along with the arrow keys, to see the mixture that was fed." })] : [];
    const run = index.runs[+runBox.value];
    if (!legend.length && question && index.soft.includes(modeBox.value) && run.path.startsWith("results/")) {
      legend.push(make("p", { className: "caption" }, "Its steps were not recorded. To watch this run think about it: ",
        make("code", { textContent: `softtok think ${run.path} '${question.replaceAll("'", "'\\''")}' --mode ${modeBox.value}` })));
    }
    shown.replaceChildren(
      make("p", { className: "question", textContent: question || `Problem ${id}; its text is not with these results.` }),
      make("p", { className: "gold" }, gold ? `Gold: ${gold}` : "", ` (${id})`), ...legend, make("ol", { start: 0, tabIndex: 0, ariaLabel: "Samples" }, ...items));
  };

  fill(setBox, Object.keys(index.sets).map((name) => [name, name]));
  const fillRuns = () => fill(runBox, index.runs.map((run, number) => [String(number), run])
    .filter(([number]) => document.getElementById(`part-samples-${number}-${setBox.value}`)).map(([number, run]) => [number, nameOf(run)]));
  fillRuns();
  const preferred = (fits) => index.runs.findIndex((run, number) => fits(run.mode) && document.getElementById(`part-samples-${number}-${setBox.value}`));
  const first = [preferred((mode) => mode === "soft"), preferred((mode) => !["base", "hard"].includes(mode)), preferred((mode) => mode !== "base")].find((number) => number >= 0);
  if (first !== undefined) runBox.value = String(first);
  setBox.addEventListener("change", () => { fillRuns(); load(); });
  runBox.addEventListener("change", load);
  modeBox.addEventListener("change", () => { fill(problemsBox, contrasts()); listProblems(); });
  problemsBox.addEventListener("change", listProblems);
  search.addEventListener("input", listProblems);
  answers.addEventListener("change", listProblems);
  list.addEventListener("change", showProblem);
  load().then(() => {
    const watched = index.modes.filter((mode) => thoughts?.[mode]);
    const soft = watched.find((mode) => mode.includes("sample")) ?? watched[0];
    if (soft) { modeBox.value = soft; fill(problemsBox, contrasts()); listProblems(); }
  });
})();
