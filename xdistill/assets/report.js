"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const groups = JSON.parse(byId("models").textContent);
  const stage = byId("stage");
  const structures = groups.flatMap((group) => group.models.map(([i, text]) => ({ group, text, i })));
  const SECONDARY = { h: "#e0527d", s: "#e0a526", c: "#8b95a5" };
  let viewer, shown = 0;

  const style = (colour, shape) => {
    const paint = colour === "ss" ? { colorfunc: (atom) => SECONDARY[atom.ss] || SECONDARY.c } : { color: "spectrum" };
    const form = shape === "trace" ? { style: "trace", thickness: 0.45 } : { style: "oval", arrows: true, thickness: 0.35 };
    return { cartoon: { ...form, ...paint } };
  };

  const draw = (target, text, look) => {
    target.removeAllModels();
    target.addModel(text, "pdb", { noSecondaryStructure: true });
    target.setStyle({}, look);
    target.zoomTo();
    target.render();
  };

  const look = () => style(byId("colour").value, byId("style").value);

  // Transparent, but edges and depth fade to this colour.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const backdrop = () => (dark.matches ? "#11161d" : "#fbfcfd");
  const create = (element) =>
    $3Dmol.createViewer(element, { backgroundColor: backdrop(), backgroundAlpha: 0, antialias: true });

  function show(index) {
    shown = (index + structures.length) % structures.length;
    const { group, text, i } = structures[shown];
    structures.forEach((s, k) => s.button.setAttribute("aria-pressed", String(k === shown)));
    const title = (text.match(/^TITLE\s+(.*)$/m) || ["", ""])[1].trim();
    byId("caption").textContent = `${group.name}, no. ${i + 1}${title && ": " + title}`;
    draw(viewer, text, look());
    stage.dataset.shown = String(shown);
  }

  function list() {
    for (const group of groups) {
      const heading = document.createElement("h3");
      const chip = document.createElement("span");
      chip.className = "chip";
      chip.style.background = group.colour;
      heading.append(chip, group.name);
      const grid = document.createElement("div");
      grid.className = "thumbnails";
      byId("structures").append(heading, grid);
      structures.filter((s) => s.group === group).forEach((s) => {
        s.button = document.createElement("button");
        s.button.type = "button";
        s.button.setAttribute("aria-label", `${group.name}, structure ${s.i + 1}`);
        const number = document.createElement("span");
        number.textContent = String(s.i + 1);
        s.button.append(number);
        s.button.addEventListener("click", () => show(structures.indexOf(s)));
        grid.append(s.button);
      });
    }
  }

  // One at a time while the browser is idle: the page answers from the start.
  function thumbnails() {
    const box = document.createElement("div");
    box.id = "workshop";
    document.body.append(box);
    const press = create(box);
    const later = window.requestIdleCallback || ((f) => setTimeout(f, 20));
    const next = (k) => {
      if (k === structures.length) {
        box.remove();
        stage.dataset.thumbnails = String(k);
        return;
      }
      draw(press, structures[k].text, style("rainbow", "cartoon"));
      const image = new Image();
      image.alt = "";
      image.src = press.pngURI();
      structures[k].button.prepend(image);
      later(() => next(k + 1));
    };
    later(() => next(0));
  }

  list();
  try {
    viewer = create(stage);
    show(0);
  } catch (error) {
    byId("no-webgl").hidden = false;
    stage.hidden = true;
    return;
  }
  byId("previous").addEventListener("click", () => show(shown - 1));
  byId("next").addEventListener("click", () => show(shown + 1));
  byId("viewer").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.target.tagName === "SELECT") return;
    event.preventDefault();
    show(shown + step);
    if (event.target.closest(".thumbnails")) structures[shown].button.focus();
  });
  for (const id of ["colour", "style"]) {
    byId(id).addEventListener("change", () => { viewer.setStyle({}, look()); viewer.render(); });
  }
  dark.addEventListener("change", () => { viewer.setBackgroundColor(backdrop(), 0); viewer.render(); });
  byId("spin").addEventListener("change", (event) => viewer.spin(event.target.checked ? "y" : false, 0.5));
  thumbnails();
})();
