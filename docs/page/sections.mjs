// The five parts of the page, each a function that binds its controls to the mathematics. They get
// `page`: student() and teacher(), promises of a network; seeds(), a count of seeds for each part;
// say(text), for who listens rather than looks; fail(error).

import { blank, film, show, stroke } from "./picture.mjs";
import { latest, pen, timed, timeOf, whenSeen } from "./controls.mjs";
import { PIXELS, SIDE } from "./network.mjs";
import { STROKES } from "./strokes.mjs";
import * as scm from "./scm.mjs";

const TWO_STEPS = [1.1]; // radians, as the paper has it
const HEUN_STEPS = 18; // 35 calls
const BETWEEN = 8; // pictures from one noise to the other

const find = (id) => document.getElementById(id);
const noiseOf = (seed) => (k) => scm.gaussian(seed, k, PIXELS);

/** New noise becomes a digit by one call. */
export function oneStep(page) {
  const nextSeed = page.seeds();
  const caption = find("one-time");
  caption.textContent = "loading the network …";
  const fail = (error) => {
    caption.textContent = "no digit";
    page.fail(error);
  };
  const run = latest(fail, find("one"), async (newer) => {
    const seed = nextSeed();
    const z = noiseOf(seed)(0);
    show(find("one-noise"), z);
    const predict = await page.student();
    const [x, took] = await timed(scm.consistencySteps(predict, () => z, []));
    find("one-seed").textContent = `seed ${seed}`;
    find("one-seed").href = `?seed=${seed}`;
    caption.textContent = `one network call, ${took}`;
    if (await film(find("one-digit"), x, z, () => !newer())) {
      page.say(`A digit from the noise of seed ${seed}: one network call, ${took}.`);
    }
  });
  find("one-new").addEventListener("click", run);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target === document.body) run();
  });
  return run();
}

/** A digit noised to any level, and what one call makes of it. */
export function anyLevel(page) {
  const nextSeed = page.seeds();
  let [noise, x0] = [null, null];
  const draw = latest(page.fail, find("level"), async () => {
    const student = await page.student();
    if (!x0) {
      noise = noiseOf(nextSeed());
      x0 = await scm.consistencySteps(student, noise, TWO_STEPS);
    }
    const t = timeOf(find("level-t"), find("level-text"));
    const x_t = scm.interpolate(x0, noise(2), t);
    show(find("level-digit"), x0);
    show(find("level-noised"), x_t);
    show(find("level-ended"), await scm.denoise(student, x_t, t));
    show(find("level-mean"), await scm.denoise(await page.teacher(), x_t, t));
  });
  find("level-t").addEventListener("input", draw);
  find("level-new").addEventListener("click", async () => {
    x0 = null;
    await draw();
    page.say("Another digit and other noise.");
  });
  whenSeen(find("level"), draw);
}

/** The same noise by one call, by two, and by a diffusion model's 35. */
export function threeWays(page) {
  const nextSeed = page.seeds();
  const run = latest(page.fail, find("ways"), async () => {
    const seed = nextSeed();
    const noise = noiseOf(seed);
    find("ways-seed").textContent = `seed ${seed}`;
    show(find("ways-noise"), noise(0));
    const student = await page.student();
    const one = await timed(scm.consistencySteps(student, noise, []));
    result("ways-one", one, "1 call");
    result("ways-two", await timed(scm.consistencySteps(student, noise, TWO_STEPS)), "2 calls");
    const teacher = await page.teacher();
    const seen = (x, calls) => result("ways-teacher", [x, "on its way"], `${calls} calls`);
    const many = await timed(scm.heun(teacher, noise(0), HEUN_STEPS, seen));
    result("ways-teacher", many, "35 calls");
    page.say(`The same noise three ways: one call ${one[1]}, 35 calls ${many[1]}.`);
  });
  find("ways-new").addEventListener("click", run);
  whenSeen(find("ways"), run);
}

/** A row of digits whose noises lie on the way from one noise to another. */
export function between(page) {
  const nextSeed = page.seeds();
  const row = find("between-row");
  const canvases = Array.from({ length: BETWEEN }, (_, i) => {
    const size = { width: SIDE, height: SIDE };
    const canvas = Object.assign(document.createElement("canvas"), { id: `between-${i}`, ...size });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `digit ${i + 1} of ${BETWEEN} on the way`);
    return canvas;
  });
  row.append(...canvases);
  const run = latest(page.fail, find("between"), async () => {
    const [a, b] = [nextSeed(), nextSeed()].map((seed) => noiseOf(seed)(0));
    const z = new Float32Array(BETWEEN * PIXELS);
    canvases.forEach((_, i) => z.set(scm.spherical(a, b, i / (BETWEEN - 1)), i * PIXELS));
    const predict = await page.student();
    const [x, took] = await timed(scm.consistencySteps(predict, () => z, []));
    canvases.forEach((canvas, i) => show(canvas, x.subarray(i * PIXELS, (i + 1) * PIXELS)));
    find("between-time").textContent = `${BETWEEN} digits in one call, ${took}`;
    page.say(`${BETWEEN} digits between two noises, ${took}.`);
  });
  find("between-new").addEventListener("click", run);
  whenSeen(find("between"), run);
}

/** A drawing, noised and repaired by one call, also while the pen still moves. */
export function repair(page) {
  const nextSeed = page.seeds();
  const pad = find("repair-drawing");
  const choice = find("repair-strokes");
  choice.append(...Object.keys(STROKES).map((name) => new Option(name, name)));
  choice.value = choice.options[1].value; // until the reader draws
  let x0 = blank();
  let z = noiseOf(nextSeed())(0);
  const draw = latest(page.fail, find("repair"), async () => {
    const t = timeOf(find("repair-t"), find("repair-text"));
    const x_t = scm.interpolate(x0, z, t);
    show(pad, x0);
    show(find("repair-noised"), x_t);
    const [x, took] = await timed(scm.denoise(await page.student(), x_t, t));
    show(find("repair-repaired"), x);
    find("repair-time").textContent = `one network call, ${took}`;
  });
  function choose() {
    x0 = blank();
    for (const line of STROKES[choice.value] ?? []) {
      line.slice(1).forEach((point, i) => stroke(x0, line[i], point));
    }
    return draw();
  }
  choice.addEventListener("change", async () => {
    await choose();
    page.say(`Repaired ${choice.value}.`);
  });
  find("repair-t").addEventListener("input", draw);
  find("repair-new").addEventListener("click", async () => {
    z = noiseOf(nextSeed())(0);
    await draw();
    page.say("Repaired with other noise.");
  });
  find("repair-clear").addEventListener("click", () => {
    choice.value = "";
    choose();
  });
  pen(pad, (from, to) => {
    choice.value = "";
    stroke(x0, from, to);
    draw();
  });
  whenSeen(find("repair"), choose);
}

function result(id, [x, took], calls) {
  show(find(id), x);
  find(`${id}-time`).textContent = `${calls}, ${took}`;
}
