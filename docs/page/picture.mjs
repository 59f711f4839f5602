// Pictures: images onto canvases, the film from noise to a digit, and a pen that draws into an image.

import { interpolate, T_MAX } from "./scm.mjs";
import { PIXELS, SIDE } from "./network.mjs";

const FILM = 600; // ms
const PEN = 1.7; // pixels from a stroke's middle to where its ink ends

/** Show an image, [-0.5, 0.5] as black to white, on a canvas of 28 x 28. */
export function show(canvas, image) {
  const pixels = new ImageData(SIDE, SIDE);
  for (let i = 0; i < PIXELS; i++) {
    const grey = 255 * (image[i] + 0.5); // ImageData rounds and clamps
    pixels.data.set([grey, grey, grey, 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

/** Film x_t = cos(t) x0 + sin(t) z while t falls; `wanted()` false stops it.
 *
 * A promise of whether it came to its end. Who asked for less motion sees the end at once.
 */
export async function film(canvas, x0, z, wanted) {
  const length = matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : FILM;
  const start = performance.now();
  for (let part = 0; part < 1; ) {
    part = length ? Math.min(1, (performance.now() - start) / length) : 1;
    show(canvas, interpolate(x0, z, T_MAX * (1 - part)));
    if (part < 1) await new Promise(requestAnimationFrame);
    if (!wanted()) return false;
  }
  return true;
}

/** An image without ink. */
export function blank() {
  return new Float32Array(PIXELS).fill(-0.5);
}

/** Draw a straight stroke from one point to another, [x, y] in pixels, into the image. */
export function stroke(image, from, to) {
  for (let i = 0; i < PIXELS; i++) {
    const centre = [(i % SIDE) + 0.5, Math.floor(i / SIDE) + 0.5];
    const ink = Math.min(1, Math.max(0, PEN - distance(centre, from, to)));
    image[i] = Math.max(image[i], ink - 0.5);
  }
}

/** From a point to the nearest one of the segment from a to b. */
function distance([x, y], a, b) {
  const [dx, dy] = [b[0] - a[0], b[1] - a[1]];
  const along = ((x - a[0]) * dx + (y - a[1]) * dy) / (dx * dx + dy * dy || 1);
  const u = Math.min(1, Math.max(0, along));
  return Math.hypot(x - a[0] - u * dx, y - a[1] - u * dy);
}
