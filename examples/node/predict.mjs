// Run a compiled bundle in Node.js: node predict.mjs BUNDLE INPUTS.json
//
// INPUTS.json maps input names to rows of whole numbers, as a tokenizer gives them. Prints the outputs as JSON and, of a
// classifier, the scores that coda.json says to make of its logits. The bundle is the same file that Python runs: its
// CoDA operators are functions made of standard ones.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { InferenceSession, Tensor } from "onnxruntime-node";

const [bundle, inputs] = process.argv.slice(2);
if (!bundle || !inputs) {
  console.error("usage: node predict.mjs BUNDLE INPUTS.json");
  process.exit(2);
}

const session = await InferenceSession.create(join(bundle, "model.onnx"));
const feeds = {};
for (const [name, rows] of Object.entries(JSON.parse(readFileSync(inputs, "utf8")))) {
  feeds[name] = new Tensor("int64", BigInt64Array.from(rows.flat(), BigInt), [rows.length, rows[0].length]);
}
const results = await session.run(feeds);
const plain = Object.entries(results).map(([name, tensor]) => [name, { dims: tensor.dims, data: [...tensor.data] }]);
const { logits } = JSON.parse(readFileSync(join(bundle, "coda.json"), "utf8"));
if (logits) {
  const { dims, data } = results.logits;
  plain.push(["scores", { dims, data: scores([...data], dims.at(-1), logits.activation) }]);
}
console.log(JSON.stringify(Object.fromEntries(plain)));

function scores(logits, labels, activation) {
  if (activation === "none") return logits;
  if (activation === "sigmoid") return logits.map((x) => 1 / (1 + Math.exp(-x)));
  return logits.map((x, i) => {
    const start = i - (i % labels);
    const row = logits.slice(start, start + labels);
    return 1 / row.reduce((sum, other) => sum + Math.exp(other - x), 0); // softmax
  });
}
