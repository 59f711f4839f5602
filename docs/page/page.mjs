// Starts the page: the first digit, then the rest of it. What goes wrong is said in one sentence.

import { load } from "./network.mjs";
import * as sections from "./sections.mjs";

const asked = Number.parseInt(new URLSearchParams(location.search).get("seed"), 10);
const first = asked >= 0 ? asked : Math.floor(Math.random() * 1e6);

const page = {
  student: once(() => load("mnist_dmd.onnx")),
  teacher: once(() => load("mnist_teacher.onnx")),
  seeds: () => {
    let seed = first;
    return () => seed++;
  },
  say: (text) => (document.getElementById("spoken").textContent = text),
  fail(error) {
    const message = document.getElementById("message");
    message.textContent = error.message;
    message.hidden = false;
  },
};

function once(make) {
  let made;
  return () => (made ??= make());
}

await sections.oneStep(page);
sections.anyLevel(page);
sections.threeWays(page);
sections.between(page);
sections.repair(page);
