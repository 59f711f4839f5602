// Controls: a pen, a slider of time, and work that is asked for faster than it can be done.

import { SIDE } from "./network.mjs";
import { sigmaFromTime, T_MAX } from "./scm.mjs";

/** Tell `drawn` of every straight piece that a mouse, a finger or a pen draws on a canvas. */
export function pen(canvas, drawn) {
  let last = null;
  const at = (event) => [
    (event.offsetX / canvas.clientWidth) * SIDE,
    (event.offsetY / canvas.clientHeight) * SIDE,
  ];
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = at(event);
    drawn(last, last);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    drawn(last, at(event));
    last = at(event);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => (last = null));
  }
}

/** The slider's time, which is also written beside it and told to who does not see it. */
export function timeOf(slider, text) {
  const t = (slider.value / slider.max) * T_MAX;
  const sigma = sigmaFromTime(t);
  const digits = sigma < 10 ? 2 : 0;
  text.textContent = `t = ${t.toFixed(2)}, σ = ${sigma.toFixed(digits)}`;
  slider.setAttribute("aria-valuetext", `t ${t.toFixed(2)}, sigma ${sigma.toFixed(digits)}`);
  return t;
}

/** What a promise brings, and how long it took, as text. */
export async function timed(promise) {
  const start = performance.now();
  const value = await promise;
  const ms = performance.now() - start;
  return [value, ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`];
}

let line = Promise.resolve(); // all work of the page, so that a time is that of one's own calls

/** `work`, one at a time: asked for while it runs, it runs once more, and `newer()` is true. */
export function latest(fail, section, work) {
  let [running, again] = [false, false];
  async function all() {
    while (again) {
      again = false;
      await work(() => again);
    }
  }
  return async function run() {
    again = true;
    if (running) return;
    running = true;
    section.setAttribute("aria-busy", "true");
    try {
      await (line = line.then(all, all));
    } catch (error) {
      fail(error);
    } finally {
      running = false;
      section.setAttribute("aria-busy", "false");
    }
  };
}

/** Run once when the reader comes near, so that the first digit waits for nothing. */
export function whenSeen(section, run) {
  const observer = new IntersectionObserver(
    (entries) => {
      if (entries.some((entry) => entry.isIntersecting)) {
        observer.disconnect();
        run();
      }
    },
    { rootMargin: "200px" },
  );
  observer.observe(section);
}
