// node llama_cpp_probabilities.mjs FOLDER IN.json OUT.json
// Next-token probabilities of llama.cpp, through FOLDER/node_modules/node-llama-cpp (prebuilt). IN.json is a list of
// {"model": path, "tokens": [ids]}; OUT.json gets a list of {"probabilities": [[p per id], ... per token]} or {"error"}.
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";
import fs from "node:fs";
import path from "node:path";

const [folder, input, output] = process.argv.slice(2);
const require = createRequire(path.join(path.resolve(folder), "index.js"));
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(require.resolve("node-llama-cpp")).href);
const llama = await getLlama({gpu: false, build: "never", progressLogs: false, logLevel: LlamaLogLevel.error});

const results = [];
for (const {model: modelPath, tokens} of JSON.parse(fs.readFileSync(input, "utf8"))) {
  try {
    const model = await llama.loadModel({modelPath, gpuLayers: 0});
    const context = await model.createContext({contextSize: 256, sequences: 1, threads: 2, flashAttention: false});
    const next = await context.getSequence().controlledEvaluate(
      tokens.map((token) => [token, {generateNext: {probabilities: true, options: {temperature: 1, topK: 0, topP: 1, minP: 0}}}]));
    results.push({probabilities: next.map((entry) => {
      const row = [];
      for (const [token, probability] of entry.next.probabilities) {
        row[token] = probability;
      }
      return Array.from(row, (probability) => probability ?? 0);
    })});
    await context.dispose();
    await model.dispose();
  } catch (error) {
    results.push({error: String(error)});
  }
}
fs.writeFileSync(output, JSON.stringify(results));
process.exit(0);
