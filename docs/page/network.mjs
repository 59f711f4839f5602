// The networks: ONNX Runtime Web, one thread, in a worker of its own, so that the page never waits.

export const SIDE = 28; // pixels of an image
export const PIXELS = SIDE * SIDE;
const RUNTIME = "./runtime/ort.wasm.bundle.min.mjs";

/** A network out of an .onnx file beside this one: a promise of `predict`, as scm.mjs wants it.
 *
 * Rejects, with a sentence for the reader, where the browser or the server refuses something.
 */
export async function load(file) {
  if (typeof WebAssembly !== "object") {
    throw new Error(
      "This browser refuses WebAssembly, which the network runs in. Some private and lockdown " +
        "modes do; another browser or another profile will show the digits.",
    );
  }
  const [ort, model] = await Promise.all([runtime(), bytes(file)]);
  const session = await ort.InferenceSession.create(model);
  return async function predict(x_t, t) {
    const n = x_t.length / PIXELS;
    const { prediction } = await session.run({
      x_t: new ort.Tensor("float32", x_t.slice(), [n, 1, SIDE, SIDE]), // the worker keeps what it gets
      t: new ort.Tensor("float32", new Float32Array(n).fill(t), [n]),
    });
    return prediction.data;
  };
}

async function runtime() {
  let ort;
  try {
    ort = await import(RUNTIME);
  } catch (error) {
    throw refused(RUNTIME, error.message);
  }
  ort.env.wasm.numThreads = 1; // more would need headers that a plain server does not send
  ort.env.wasm.proxy = true; // the worker
  return ort;
}

async function bytes(file) {
  let response;
  try {
    response = await fetch(new URL(file, import.meta.url));
  } catch (error) {
    throw refused(file, error.message);
  }
  if (!response.ok) throw refused(file, `the server answered ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

function refused(file, why) {
  return new Error(
    `The file ${file.replace("./", "")} could not be loaded (${why}). Reload the page; if you serve ` +
      "it from a clone, look whether the file is there: make page writes it.",
  );
}
