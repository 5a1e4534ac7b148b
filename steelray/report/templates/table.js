"use strict";
// The table of all rows: search, filters, order, pages of fifty. Values are only ever inserted as text.
if (document.getElementById("row-data")) {
  const byId = (id) => document.getElementById(id);
  const { save, cell } = window.steelray;
  const data = JSON.parse(byId("row-data").textContent);
  const verdicts = ["reject", "review", "normal"];
  const names = data.states.map(([name]) => name);
  const PAGE = 50;
  const total = data.key.length;
  const find = byId("find"), group = byId("filter-group"), state = byId("filter-state"), from = byId("score-from"), to = byId("score-to");
  const format = (value) => value === null ? "" : value.toLocaleString("en", { minimumSignificantDigits: 4, maximumSignificantDigits: 4, useGrouping: false });
  const groupName = (index) => data.groups[index] || (data.groups.length > 1 ? "no group" : "");
  let haystack = null;
  let order = Array.from({ length: total }, (_, row) => row);
  let matching = order;
  let page = 0;
  let sorted = null;

  const addOption = (parent, value, text) => {
    const option = document.createElement("option");
    option.value = value;
    option.textContent = text;
    parent.append(option);
  };
  const present = (name) => names.includes(name);
  addOption(state, "", "any");
  if (present("reject") || present("review")) addOption(state, "*flagged", "flagged");
  for (const name of verdicts.filter(present)) addOption(state, name, data.states[names.indexOf(name)][1]);
  const failures = names.filter((name) => !verdicts.includes(name));
  if (failures.length) addOption(state, "*failed", "no score");
  for (const name of failures) addOption(state, name, data.states[names.indexOf(name)][1]);

  const accepted = (value) => data.states.map(([name]) =>
    value === "" || name === value || (value === "*flagged" && (name === "reject" || name === "review")) || (value === "*failed" && !verdicts.includes(name)));

  const apply = () => {
    const states = accepted(state.value);
    const words = find.value.trim().toLowerCase();
    const wantedGroup = group && group.selectedIndex > 0 ? data.groups.indexOf(group.value) : null;
    const low = from.value === "" ? null : Number(from.value), high = to.value === "" ? null : Number(to.value);
    if (words && !haystack) haystack = data.key.map((key, row) => (key + "\n" + data.errors[data.error[row]]).toLowerCase());
    matching = order.filter((row) =>
      states[data.state[row]] && (wantedGroup === null || data.group[row] === wantedGroup) && (!words || haystack[row].includes(words))
      && (low === null || (data.score[row] !== null && data.score[row] >= low)) && (high === null || (data.score[row] !== null && data.score[row] <= high)));
    page = 0;
    draw();
  };

  const fill = (row) => {
    const line = document.createElement("tr");
    line.setAttribute("role", "row");
    const add = (text, label, className) => {
      const field = document.createElement("td");
      field.setAttribute("role", "cell");
      field.textContent = text;
      if (label) field.dataset.label = label;
      if (className) field.className = className;
      line.append(field);
      return field;
    };
    const key = add("", "", "");
    const text = document.createElement("span");
    text.className = "key";
    text.textContent = data.key[row];
    key.append(text);
    const error = data.errors[data.error[row]];
    if (error) {
      const note = document.createElement("span");
      note.className = "error";
      note.textContent = error;
      key.append(note);
    }
    add(groupName(data.group[row]));
    const [name, title] = data.states[data.state[row]];
    const badge = document.createElement("span");
    badge.className = "badge " + (verdicts.includes(name) ? name : "failed");
    badge.textContent = title;
    add("").append(badge);
    add(format(data.score[row]), "score", "num");
    add(format(data.threshold[row]), "threshold", "num");
    add(data.area[row] === null ? "" : (100 * data.area[row]).toLocaleString("en", { maximumSignificantDigits: 2 }) + " %", "area", "num");
    add(data.boxes[row] ? String(data.boxes[row]) : "", "places", "num");
    add(format(data.brightness[row]), "brightness", "num");
    return line;
  };

  const draw = () => {
    const pages = Math.max(1, Math.ceil(matching.length / PAGE));
    const rows = matching.slice(page * PAGE, (page + 1) * PAGE);
    byId("row-body").replaceChildren(...rows.map(fill));
    const [first, last] = [page * PAGE + 1, page * PAGE + rows.length].map((place) => place.toLocaleString("en"));
    const found = matching.length === total ? `${total.toLocaleString("en")} rows` : `${matching.length.toLocaleString("en")} of ${total.toLocaleString("en")} rows`;
    byId("row-count").textContent = rows.length ? `${found}; ${first} to ${last} are shown` : found;
    byId("page-place").textContent = `page ${page + 1} of ${pages}`;
    byId("page-back").disabled = page === 0;
    byId("page-on").disabled = page >= pages - 1;
  };
  const turn = (by) => { page += by; draw(); byId("rows").scrollIntoView({ block: "start" }); };

  const compare = {
    key: (a, b) => data.key[a] < data.key[b] ? -1 : data.key[a] > data.key[b] ? 1 : 0,
    group: (a, b) => groupName(data.group[a]).localeCompare(groupName(data.group[b])),
    state: (a, b) => data.states[data.state[a]][1].localeCompare(data.states[data.state[b]][1]),
  };
  const sortBy = (column, direction) => {
    const by = compare[column] ?? ((a, b) => data[column][a] - data[column][b]);
    const missing = (row) => data[column][row] === null;
    order = Array.from({ length: total }, (_, row) => row).sort((a, b) =>
      missing(a) || missing(b) ? missing(a) - missing(b) || a - b : direction * by(a, b) || a - b);
  };
  for (const head of document.querySelectorAll("#row-table th")) {
    head.firstElementChild.addEventListener("click", () => {
      const column = head.dataset.sort;
      const descending = sorted === column + "-up" || (sorted !== column + "-down" && head.classList.contains("num"));
      sorted = column + (descending ? "-down" : "-up");
      for (const other of document.querySelectorAll("#row-table th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortBy(column, descending ? -1 : 1);
      apply();
    });
  }

  let waiting = 0;
  for (const input of [find, from, to]) input.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(apply, 120); });
  for (const select of [group, state]) select?.addEventListener("change", apply);
  byId("filters").addEventListener("submit", (event) => { event.preventDefault(); apply(); });
  byId("filters").addEventListener("reset", () => setTimeout(apply));
  byId("page-back").addEventListener("click", () => turn(-1));
  byId("page-on").addEventListener("click", () => turn(1));
  byId("save-rows").addEventListener("click", () => save(`rows-${document.documentElement.dataset.run}.csv`, [
    "image_key,group,status,error,score,threshold,defect_area_fraction,boxes,brightness",
    ...matching.map((row) => [data.key[row], data.groups[data.group[row]], data.states[data.state[row]][0], data.errors[data.error[row]],
      data.score[row], data.threshold[row], data.area[row], data.boxes[row], data.brightness[row]].map(cell).join(",")),
  ]));
  for (const link of document.querySelectorAll("[data-show]")) link.addEventListener("click", () => {
    byId("filters").reset();
    // after the form's own reset
    setTimeout(() => { state.value = link.dataset.show; apply(); });
  });
  draw();
}
