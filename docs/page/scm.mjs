// The mathematics of the page: TrigFlow's path, samplers and noise, in the paper's letters (Lu & Song
// 2025, arXiv 2410.11081). The same equations as scm/method/, which says more of each.
//
// Images are Float32Arrays about in [-0.5, 0.5], several of them one after the other. Times are
// radians: 0 is data, pi/2 is noise. A network is `predict(x_t, t)`, a promise of
// sigma_d F(x_t / sigma_d, t) in x_t's shape.

export const SIGMA_DATA = 0.5; // the data's standard deviation, and the noise's
export const SIGMA_MIN = 0.002; // last noise level above 0 (Karras et al. 2022)
export const SIGMA_MAX = 80; // first noise level (Karras et al. 2022)
export const RHO = 7; // how the grid crowds at low noise (Karras et al. 2022)
export const T_MAX = timeFromSigma(SIGMA_MAX); // where sampling starts: 1.56454

/** sigma = sigma_d tan(t), the noise level of other papers. */
export function sigmaFromTime(t) {
  return SIGMA_DATA * Math.tan(t);
}

/** t = arctan(sigma / sigma_d). */
export function timeFromSigma(sigma) {
  return Math.atan(sigma / SIGMA_DATA);
}

/** x_t = cos(t) x0 + sin(t) z: the path from data to noise. */
export function interpolate(x0, z, t) {
  return sum(Math.cos(t), x0, Math.sin(t), z);
}

/** f(x_t, t) = cos(t) x_t - sin(t) sigma_d F; `prediction` is sigma_d F. */
export function consistency(x_t, prediction, t) {
  return sum(Math.cos(t), x_t, -Math.sin(t), prediction);
}

/** z(x_t, t) = sin(t) x_t + cos(t) sigma_d F, the consistency function's other half. */
export function noiseEstimate(x_t, prediction, t) {
  return sum(Math.sin(t), x_t, Math.cos(t), prediction);
}

/** f(x_t, t) by one call: where the trajectory ends, and of a diffusion model the mean of all ends. */
export async function denoise(predict, x_t, t) {
  return consistency(x_t, await predict(x_t, t), t);
}

/** The consistency sampler: x = f(z, t_max), then at each of `times` noise again and x = f(x_t, t).
 *
 * `noise(k)` is the k-th noise; [] is one step, [1.1] the paper's two.
 */
export async function consistencySteps(predict, noise, times) {
  let x = await denoise(predict, noise(0), T_MAX);
  for (const [k, t] of times.entries()) {
    x = await denoise(predict, interpolate(x, noise(k + 1), t), t);
  }
  return x;
}

/** The grid of Karras et al. 2022 (eq. 5) as steps + 1 falling times, the last of them 0. */
export function karrasTimes(steps) {
  const [high, low] = [SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)];
  const ramp = Array.from({ length: steps }, (_, i) => i / (steps - 1 || 1));
  return [...ramp.map((u) => timeFromSigma((high + u * (low - high)) ** RHO)), 0];
}

/** A diffusion model's ODE dx/dt = sigma_d F from noise z to data by Heun's scheme (Karras et al.
 * 2022, Algorithm 1): 2 steps - 1 calls. Its variables are y = x / cos(t) and sigma.
 *
 * `seen(x, calls)` is told of every step.
 */
export async function heun(predict, z, steps, seen = () => {}) {
  const times = karrasTimes(steps);
  let x = z;
  let calls = 0;
  for (let i = 0; i < steps; i++) {
    const [s, t] = [times[i], times[i + 1]];
    const prediction = await predict(x, s);
    const euler = sum(Math.cos(s - t), x, -Math.sin(s - t), prediction);
    calls += 1;
    if (t > 0) {
      const d_s = noiseEstimate(x, prediction, s);
      const d_t = noiseEstimate(euler, await predict(euler, t), t);
      const half = (Math.cos(t) * (Math.tan(t) - Math.tan(s))) / 2;
      x = sum(Math.cos(t) / Math.cos(s), x, half, sum(1, d_s, 1, d_t));
      calls += 1;
    } else {
      x = euler;
    }
    seen(x, calls);
  }
  return x;
}

/** The point a part u of the way from a to b along the great circle, so that noise stays noise. */
export function spherical(a, b, u) {
  const cosine = dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
  const omega = Math.acos(Math.min(1, Math.max(-1, cosine)));
  if (Math.sin(omega) < 1e-6) return Float32Array.from(a); // one direction: there is no circle
  return sum(Math.sin((1 - u) * omega) / Math.sin(omega), a, Math.sin(u * omega) / Math.sin(omega), b);
}

/** n values of N(0, sigma_d^2) that follow from (seed, stream) alone, both whole numbers. */
export function gaussian(seed, stream, n) {
  const uniform = sfc32(seed, stream);
  const z = new Float32Array(n);
  for (let i = 0; i < n; i += 2) {
    const radius = SIGMA_DATA * Math.sqrt(-2 * Math.log(1 - uniform())); // Box and Muller 1958
    const angle = 2 * Math.PI * uniform();
    z[i] = radius * Math.cos(angle);
    if (i + 1 < n) z[i + 1] = radius * Math.sin(angle);
  }
  return z;
}

/** Doty-Humphrey's generator sfc32: uniform numbers in [0, 1). */
function sfc32(seed, stream) {
  let [a, b, c, counter] = [seed | 0, stream | 0, 0x9e3779b9 | 0, 1];
  function next() {
    const out = (a + b + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + out) | 0;
    return (out >>> 0) / 2 ** 32;
  }
  for (let i = 0; i < 20; i++) next(); // until every bit of the seed has reached every word
  return next;
}

function sum(p, a, q, b) {
  return Float32Array.from(a, (value, i) => p * value + q * b[i]);
}

function dot(a, b) {
  return a.reduce((total, value, i) => total + value * b[i], 0);
}
