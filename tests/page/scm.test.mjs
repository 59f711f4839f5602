// The page's mathematics against closed forms: `node --test`, or pytest, which runs this file too.

import assert from "node:assert/strict";
import { test } from "node:test";
import * as scm from "../../docs/page/scm.mjs";

const S = 0.2; // standard deviation of Gaussian data, of which every solution is known
const variance = (t) => (Math.cos(t) * S) ** 2 + (Math.sin(t) * scm.SIGMA_DATA) ** 2; // of x_t

/** sigma_d F of the diffusion model: E[v_t | x_t] = Cov(v_t, x_t) / Var(x_t) x_t. */
async function velocity(x_t, t) {
  const covariance = Math.sin(t) * Math.cos(t) * (scm.SIGMA_DATA ** 2 - S ** 2);
  return x_t.map((x) => (x * covariance) / variance(t));
}

/** sigma_d F of the consistency model: f(x_t, t) = S / sqrt(Var(x_t)) x_t is the trajectory's end. */
async function ending(x_t, t) {
  return x_t.map((x) => ((Math.cos(t) - S / Math.sqrt(variance(t))) / Math.sin(t)) * x);
}

function close(found, expected, tolerance = 1e-6) {
  assert.equal(found.length, expected.length);
  found.forEach((value, i) => {
    assert.ok(Math.abs(value - expected[i]) <= tolerance, `${i}: ${value} is not ${expected[i]}`);
  });
}

function moments(values) {
  const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
  const central = (k) => values.reduce((sum, v) => sum + (v - mean) ** k, 0) / values.length;
  return { mean, deviation: Math.sqrt(central(2)), kurtosis: central(4) / central(2) ** 2 };
}

const z = scm.gaussian(3, 0, 784);
const x0 = scm.gaussian(3, 1, 784);

test("the angle and sigma are each other's inverse, and t_max is sigma 80", () => {
  assert.ok(Math.abs(scm.T_MAX - 1.56454) < 1e-5);
  assert.ok(Math.abs(scm.sigmaFromTime(scm.T_MAX) - 80) < 1e-9);
  assert.ok(Math.abs(scm.sigmaFromTime(Math.PI / 4) - 0.5) < 1e-12);
  assert.ok(Math.abs(scm.timeFromSigma(scm.sigmaFromTime(1.1)) - 1.1) < 1e-12);
});

test("the path begins at the image and ends at the noise", () => {
  close(scm.interpolate(x0, z, 0), x0);
  close(scm.interpolate(x0, z, Math.PI / 2), z);
});

test("f and z of the true velocity give the pair back", () => {
  const t = 0.7;
  const v = scm.interpolate(x0, z, t + Math.PI / 2); // dx_t/dt = cos(t) z - sin(t) x0
  close(scm.consistency(scm.interpolate(x0, z, t), v, t), x0);
  close(scm.noiseEstimate(scm.interpolate(x0, z, t), v, t), z);
});

test("f changes nothing at t = 0", async () => {
  close(await scm.denoise(velocity, x0, 0), x0);
});

test("one step of a consistency model is the end of the trajectory", async () => {
  const x = await scm.consistencySteps(ending, () => z, []);
  close(x, z.map((value) => (S / Math.sqrt(variance(scm.T_MAX))) * value));
});

test("two steps take their second noise at t = 1.1", async () => {
  const first = S / Math.sqrt(variance(scm.T_MAX));
  const second = S / Math.sqrt(variance(1.1));
  const x = await scm.consistencySteps(ending, (k) => [z, x0][k], [1.1]);
  close(x, z.map((v, i) => second * (Math.cos(1.1) * first * v + Math.sin(1.1) * x0[i])));
});

test("a sampler calls the network at its times alone", async () => {
  const asked = [];
  const network = async (x_t, t) => (asked.push(t), velocity(x_t, t));
  await scm.consistencySteps(network, () => z, [1.1]);
  assert.deepEqual(asked, [scm.T_MAX, 1.1]);
  const steps = [];
  asked.length = 0;
  await scm.heun(network, z, 18, (_, calls) => steps.push(calls));
  assert.equal(asked.length, 35);
  assert.deepEqual(steps, [...Array(17).keys()].map((i) => 2 * i + 2).concat(35));
  assert.deepEqual([...new Set(asked)], scm.karrasTimes(18).slice(0, -1));
});

test("Heun reaches the trajectory's end, and twice the steps a quarter of the error", async () => {
  const start = Float32Array.of(1);
  const exact = S / Math.sqrt(variance(scm.T_MAX));
  const error = async (steps) => Math.abs((await scm.heun(velocity, start, steps))[0] - exact);
  const [coarse, fine] = [await error(64), await error(128)];
  assert.ok(fine < 1e-3, `${fine}`);
  assert.ok(coarse / fine > 3.4 && coarse / fine < 5.2, `${coarse} and ${fine}`);
});

test("noise has the data's standard deviation, and is normal", () => {
  const { mean, deviation, kurtosis } = moments(scm.gaussian(0, 0, 400000));
  assert.ok(Math.abs(mean) < 0.003, `mean ${mean}`); // four standard errors
  assert.ok(Math.abs(deviation - scm.SIGMA_DATA) < 0.0023, `deviation ${deviation}`);
  assert.ok(Math.abs(kurtosis - 3) < 0.032, `kurtosis ${kurtosis}`);
});

test("noise follows from seed and stream, and shares nothing with another's", () => {
  assert.deepEqual(scm.gaussian(5, 1, 784), scm.gaussian(5, 1, 784));
  assert.deepEqual(scm.gaussian(5, 1, 11), scm.gaussian(5, 1, 784).subarray(0, 11));
  for (const [seed, stream] of [[6, 1], [5, 2], [1, 5]]) {
    const [a, b] = [scm.gaussian(5, 1, 20000), scm.gaussian(seed, stream, 20000)];
    const correlation = a.reduce((sum, v, i) => sum + v * b[i], 0) / 20000 / scm.SIGMA_DATA ** 2;
    assert.ok(Math.abs(correlation) < 4 / Math.sqrt(20000), `${seed}, ${stream}: ${correlation}`);
  }
});

test("the way between two noises has their ends, their length and equal turns", () => {
  const [a, b] = [Float32Array.of(0.5, 0), Float32Array.of(0, 0.5)];
  close(scm.spherical(a, b, 0), a);
  close(scm.spherical(a, b, 1), b);
  close(scm.spherical(a, b, 1 / 3), [0.5 * Math.cos(Math.PI / 6), 0.5 * Math.sin(Math.PI / 6)]);
  close(scm.spherical(z, z, 0.4), z);
  assert.ok(Math.abs(moments(scm.spherical(z, x0, 0.5)).deviation - scm.SIGMA_DATA) < 0.03);
});
