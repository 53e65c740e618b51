// The item view: filters, and cards made from the data as text, never as HTML.
(() => {
  "use strict";
  const source = document.getElementById("item-data");
  if (!source) return;
  const { arms, measures, kinds, items } = JSON.parse(source.textContent);
  const PAGE = 20;
  const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
  const at = (id) => document.getElementById(id);
  const list = at("item-list"), count = at("item-count"), more = at("more-items"), form = at("filters");
  let found = items, drawn = 0;

  const make = (tag, className, ...children) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...children);
    return element;
  };
  const text = (tag, className, words) => {
    const element = make(tag, className);
    element.dir = "auto";
    element.textContent = words;
    return element;
  };
  const icon = (name) => {
    const [svg, use] = ["svg", "use"].map((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));
    svg.setAttribute("class", "icon");
    svg.setAttribute("aria-hidden", "true");
    use.setAttribute("href", `#icon-${name}`);
    svg.append(use);
    return svg;
  };

  const heading = (item) => {
    const parts = [measures[item.measure].heading, item.category, item.id].filter(Boolean);
    return make("h3", "", ...parts.map((part) => text("bdi", "", part)));
  };
  const flips = (item) => {
    const badges = Object.entries(item.flips).map(([model, kind]) =>
      make("li", `badge ${kind}`, icon(kind), text("bdi", "", model), make("span", "", kinds[kind].toLowerCase())));
    return make("ul", "flips", ...badges);
  };
  const options = (item) => make("ol", "options", ...item.options.map((option, index) => {
    // In an element of its own: marks that turn text round must not reach what follows.
    const line = make("li", index === item.right ? "right" : "", text("bdi", "", option));
    if (index === item.right) line.append(make("em", "", " (right)"));
    return line;
  }));
  const outcome = (item, answer) => {
    if (!answer) return ["unmeasured", "not asked"];
    const [good, chosen, , failure] = answer;
    const words = measures[item.measure];
    const letter = chosen === null ? "" : `${LETTERS[chosen] ?? "?"}, `;
    if (good === null) return ["unmeasured", failure ? `not measured: ${failure}` : "not measured"];
    return [good ? "kept" : "broken", failure && failure !== words.bad ? failure : letter + (good ? words.good : words.bad)];
  };
  const answer = (item, arm, given) => {
    const kind = item.flips[arm.name];
    const [mark, words] = outcome(item, given);
    const part = make("div", kind ? `answer ${kind}` : "answer",
      make("h4", "", text("bdi", "", arm.name), make("small", "", arm.role)),
      make("p", `outcome ${mark}`, icon(mark), words));
    if (given && given[1] !== null && item.options[given[1]] !== undefined)
      part.append(text("p", "response", item.options[given[1]]));
    if (given && given[2] !== null) part.append(text("p", "response", given[2]));
    return part;
  };
  const card = (item) => {
    const asked = [text("p", "asked", item.text)];
    if (item.options.length) asked.push(options(item));
    const told = make("div", "answers", ...arms.map((arm, index) => answer(item, arm, item.answers[index])));
    const body = [...asked, told];
    const article = make("article", "item card", heading(item), flips(item));
    article.tabIndex = -1;
    if (item.harmful) {
      const details = make("details", "harmful", make("summary", "", "Text and answers, which may be harmful"), ...body);
      details.open = at("open-harmful").checked;
      article.append(details);
    } else article.append(...body);
    return article;
  };

  const searched = new Map();
  const haystack = (item) => {
    if (!searched.has(item)) {
      const texts = [item.id, item.category, item.text, ...item.options, ...item.answers.map((one) => one?.[2] ?? "")];
      searched.set(item, texts.join("\n").toLowerCase());
    }
    return searched.get(item);
  };
  const matches = (item) => {
    const [measure, category, kind, model] = ["measure", "category", "kind", "model"].map((one) => at(`filter-${one}`).value);
    const words = at("filter-text").value.trim().toLowerCase();
    const found = Object.entries(item.flips).some(([name, how]) => (!model || name === model) && (!kind || how === kind));
    return found && (!measure || item.measure === measure) && (!category || item.category === category)
      && (!words || haystack(item).includes(words));
  };
  const number = (value) => value.toLocaleString("en");
  const show = () => {
    const next = found.slice(drawn, drawn + PAGE).map(card);
    list.append(...next);
    drawn += next.length;
    const left = found.length - drawn;
    count.textContent = found.length ? `Showing ${number(drawn)} of ${number(found.length)} items` : "No item fits these filters";
    more.hidden = left === 0;
    more.textContent = `Show ${number(Math.min(PAGE, left))} more`;
    return next[0];
  };
  const filter = () => {
    found = items.filter(matches);
    drawn = 0;
    list.replaceChildren();
    show();
  };

  let waiting;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", (event) => {
    if (event.target.id !== "open-harmful") return filter();
    for (const details of list.querySelectorAll("details.harmful")) details.open = event.target.checked;
  });
  at("filter-text").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 120);
  });
  more.addEventListener("click", () => show()?.focus());
  form.hidden = false;
  show();
})();
