"use strict";
// The gallery: switches for heatmap and boxes, filters, verdicts, and the enlarged strip.
{
  const byId = (id) => document.getElementById(id);
  document.documentElement.classList.add("has-js");
  const root = document.documentElement;
  // on a phone the style sheet lays tables out as blocks, which would cost them their roles
  const roles = { TABLE: "table", THEAD: "rowgroup", TBODY: "rowgroup", TR: "row", TD: "cell" };
  for (const table of document.querySelectorAll("table.stack"))
    for (const part of [table, ...table.querySelectorAll("thead, tbody, tr, td, th")])
      part.setAttribute("role", roles[part.tagName] ?? (part.scope === "row" ? "rowheader" : "columnheader"));
  const cards = [...document.querySelectorAll(".card")];
  const BATCH = 24;
  let shown = BATCH;

  const save = (name, lines) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\r\n") + "\r\n"], { type: "text/csv" }));
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
  };
  // a leading = + - @ would be a formula in a spreadsheet
  const cell = (value) => {
    const text = String(value ?? "");
    const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? "'" + text : text;
    return /[",\r\n]/.test(safe) ? '"' + safe.replaceAll('"', '""') + '"' : safe;
  };
  window.steelray = { save, cell };

  if (cards.length) {
    const wanted = () => {
      const group = byId("gallery-group")?.value ?? "";
      const verdict = byId("gallery-verdict")?.value ?? "";
      const any = byId("gallery-group")?.selectedIndex > 0;
      return cards.filter((card) => (!any || card.dataset.group === group) && (!verdict || card.dataset.verdict === verdict));
    };
    const layOut = () => {
      const matching = wanted();
      const visible = new Set(matching.slice(0, shown));
      for (const card of cards) card.hidden = !visible.has(card);
      const more = byId("more-cards");
      more.hidden = matching.length <= shown;
      more.textContent = `Show ${Math.min(BATCH, matching.length - shown)} more of ${matching.length}`;
      byId("gallery-count").textContent = `${visible.size} of ${matching.length} strips are shown`;
    };
    byId("more-cards").addEventListener("click", () => {
      const next = wanted()[shown];
      shown += BATCH;
      layOut();
      next?.querySelector(".strip").focus({ preventScroll: true });
    });
    for (const id of ["gallery-group", "gallery-verdict"]) byId(id)?.addEventListener("change", () => { shown = BATCH; layOut(); });
    for (const layer of ["heatmap", "boxes"])
      byId("show-" + layer).addEventListener("change", (event) => {
        root.classList.toggle("no-" + layer, !event.target.checked);
        byId("zoom-" + layer).setAttribute("aria-pressed", String(event.target.checked));
      });
    byId("opacity").addEventListener("input", (event) => root.style.setProperty("--opacity", event.target.value / 100));
    layOut();

    // verdicts stay in this browser until they are saved to a file, which jobs/review.py reads
    const store = "steelray-verdicts-" + root.dataset.run;
    let said = {};
    try { said = JSON.parse(localStorage.getItem(store) ?? "{}"); } catch { /* this browser stores nothing for local files */ }
    const showVerdicts = () => {
      for (const card of cards)
        for (const button of card.querySelectorAll("[data-say]"))
          button.setAttribute("aria-pressed", String(said[card.dataset.key] === button.dataset.say));
      byId("save-verdicts").disabled = !Object.keys(said).length;
      try { localStorage.setItem(store, JSON.stringify(said)); } catch { /* then they last until the page is closed */ }
    };
    byId("cards").addEventListener("click", (event) => {
      const button = event.target.closest("[data-say]");
      if (!button) return;
      const key = button.closest(".card").dataset.key;
      if (said[key] === button.dataset.say) delete said[key];
      else said[key] = button.dataset.say;
      showVerdicts();
    });
    byId("save-verdicts").addEventListener("click", () => {
      const quoted = (text) => '"' + text.replaceAll('"', '""') + '"';
      save(`verdicts-${root.dataset.run}.csv`, ["image_key,verdict", ...Object.entries(said).map(([key, verdict]) => `${quoted(key)},${verdict}`)]);
    });
    showVerdicts();

    const dialog = byId("zoom");
    const stage = byId("stage");
    const canvas = byId("canvas");
    let open = null;
    let factor = 1;
    let worst = [0.5, 0.5]; // zooming starts at the middle of the first box
    const zoom = (to) => {
      const middle = factor === 1 ? [worst[0] * canvas.clientWidth, worst[1] * canvas.clientHeight]
        : [(stage.scrollLeft + stage.clientWidth / 2) / factor, (stage.scrollTop + stage.clientHeight / 2) / factor];
      factor = Math.min(8, Math.max(1, to));
      canvas.style.width = 100 * factor + "%";
      stage.scrollTo({ left: middle[0] * factor - stage.clientWidth / 2, top: middle[1] * factor - stage.clientHeight / 2, behavior: "instant" });
      byId("zoom-factor").textContent = `${Math.round(factor * 10) / 10}×`;
    };
    const show = (card) => {
      if (!card) return;
      open = card;
      canvas.replaceChildren(...[...card.querySelector(".strip").children].map((part) => part.cloneNode(true)));
      for (const image of canvas.querySelectorAll("img")) image.loading = "eager";
      byId("zoom-key").textContent = card.dataset.key;
      const badge = card.querySelector(".badge");
      byId("zoom-verdict").textContent = badge.textContent;
      byId("zoom-verdict").className = badge.className;
      byId("zoom-score").textContent = card.querySelector(".score").lastChild.textContent;
      const link = card.querySelector(".actions a");
      byId("zoom-open").hidden = !link;
      if (link) byId("zoom-open").href = link.href;
      if (!dialog.open) dialog.showModal();
      const [box, frame] = [canvas.querySelector("rect")?.getBBox(), canvas.querySelector("svg")?.viewBox.baseVal];
      worst = box ? [(box.x + box.width / 2) / frame.width, (box.y + box.height / 2) / frame.height] : [0.5, 0.5];
      zoom(1);
      stage.focus();
    };
    const step = (by) => { const all = wanted(); show(all[all.indexOf(open) + by]); };
    byId("cards").addEventListener("click", (event) => { if (event.target.closest(".strip")) show(event.target.closest(".card")); });
    const actions = {
      "zoom-close": () => dialog.close(), "zoom-back": () => step(-1), "zoom-next": () => step(1),
      "zoom-in": () => zoom(factor * 1.5), "zoom-out": () => zoom(factor / 1.5),
      "zoom-heatmap": () => byId("show-heatmap").click(), "zoom-boxes": () => byId("show-boxes").click(),
    };
    for (const [id, action] of Object.entries(actions)) byId(id).addEventListener("click", action);
    const keys = { n: "zoom-next", p: "zoom-back", "+": "zoom-in", "=": "zoom-in", "-": "zoom-out", h: "zoom-heatmap", b: "zoom-boxes" };
    dialog.addEventListener("keydown", (event) => {
      const id = keys[event.key.toLowerCase()];
      if (!id || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      actions[id]();
    });
    stage.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      zoom(factor * (event.deltaY < 0 ? 1.2 : 1 / 1.2));
    }, { passive: false });
    canvas.addEventListener("dblclick", () => zoom(factor > 1 ? 1 : 3));
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("close", () => open?.querySelector(".strip").focus());
  }
}
