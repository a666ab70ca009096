"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const groups = JSON.parse(byId("models").textContent);
  const stage = byId("stage");
  const structures = groups.flatMap((group) => group.models.map(([i, text]) => ({ group, text, i })));
  const SECONDARY = { h: "#e0527d", s: "#e0a526", c: "#8b95a5" };
  const STEPS = 4;
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

  // Points of a spline through the CA atoms, STEPS to a residue.
  function trace(text) {
    const ca = Array.from(text.matchAll(/^ATOM.{9}CA .{14}(.{8})(.{8})(.{8})/gm), (m) => m.slice(1).map(Number));
    const at = (i) => ca[Math.min(Math.max(i, 0), ca.length - 1)];
    const points = [];
    for (let k = 0; k <= STEPS * (ca.length - 1); k++) {
      const i = Math.floor(k / STEPS), f = k / STEPS - i;
      const [a, b, c, d] = [at(i - 1), at(i), at(i + 1), at(i + 2)];
      points.push([0, 1, 2].map((j) => b[j] + (f / 2) * (c[j] - a[j]
        + f * (2 * a[j] - 5 * b[j] + 4 * c[j] - d[j] + f * (3 * (b[j] - c[j]) + d[j] - a[j])))));
    }
    return points;
  }

  // A tube drawn from far to near on a plain canvas. In WebGL the shaders of a second context, compiled on the
  // processor where there is no GPU, would cost more than all pictures; and these need no frame and no idle time.
  function picture(text) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [2 * 76, 2 * 66];
    const pen = canvas.getContext("2d");
    const points = trace(text);
    const [x, y, z] = [0, 1, 2].map((j) => {
      const values = points.map((p) => p[j]);
      const [low, high] = [Math.min(...values), Math.max(...values)];
      return { middle: (low + high) / 2, low, size: high - low || 1 };
    });
    const scale = Math.min((canvas.width - 24) / x.size, (canvas.height - 24) / y.size, 6);
    const width = Math.min(Math.max(1.3 * scale, 3), 7);
    pen.translate(canvas.width / 2, canvas.height / 2);
    const stroke = (p, q, operation, cap, thickness) => {
      [pen.globalCompositeOperation, pen.lineCap, pen.lineWidth] = [operation, cap, thickness];
      pen.beginPath();
      for (const end of [p, q]) pen.lineTo((end[0] - x.middle) * scale, (y.middle - end[1]) * scale);
      pen.stroke();
    };
    const pieces = points.slice(1).map((q, k) => ({ p: points[k], q, along: k / points.length }));
    for (const { p, q, along } of pieces.sort((one, other) => one.p[2] - other.p[2])) {
      const near = (p[2] - z.low) / z.size;
      pen.strokeStyle = `hsl(${300 * (1 - along)} ${50 + 30 * near}% ${62 - 16 * near}%)`;
      stroke(p, q, "destination-out", "butt", width + 3); // a gap where the chain passes in front of itself
      stroke(p, q, "source-over", "round", width);
    }
    return canvas;
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
        s.button.append(picture(s.text), number);
        s.button.addEventListener("click", () => show(structures.indexOf(s)));
        grid.append(s.button);
      });
    }
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
})();
