// Prefill and decode speed of llama.cpp (as node-llama-cpp ships it) on a GGUF file.
//   node tests/bench/llama_bench.mjs MODEL.gguf [--threads 2] [--prefill 512] [--decode 48] [--batch 1,2,4,8] [--repeat 3] [--vocab 262144]
import {getLlama} from "node-llama-cpp";
const args = process.argv.slice(2);
const opt = (name, d) => { const i = args.indexOf("--" + name); return i < 0 ? d : args[i + 1]; };
const path = args[0], threads = +opt("threads", 2), nPrefill = +opt("prefill", 512), nDecode = +opt("decode", 48);
const batches = String(opt("batch", "1,2,4,8")).split(",").map(Number), repeat = +opt("repeat", 3), vocab = +opt("vocab", 262144);
const llama = await getLlama({gpu: false, maxThreads: threads, logLevel: "error", build: "never"});
const t0 = performance.now();
const model = await llama.loadModel({modelPath: path, gpuLayers: 0});
console.log(JSON.stringify({load_s: (performance.now() - t0) / 1e3}));
let state = 12345;
const rnd = () => { state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff; return 1000 + state % (vocab - 2000); };
const median = (v) => v.sort((a, b) => a - b)[v.length >> 1];
const maxB = Math.max(...batches);
const context = await model.createContext({contextSize: nPrefill + nDecode + 64, sequences: maxB, batchSize: 512, threads});
const seqs = Array.from({length: maxB}, () => context.getSequence());
if (nPrefill > 0) {
  const v = [];
  for (let r = 0; r < repeat; r++) {
    await seqs[0].clearHistory();
    const tokens = Array.from({length: nPrefill}, rnd);
    const t = performance.now();
    await seqs[0].evaluateWithoutGeneratingNewTokens(tokens);
    v.push(nPrefill / ((performance.now() - t) / 1e3));
  }
  console.log(JSON.stringify({test: "prefill", tokens: nPrefill, tok_s: median(v)}));
}
for (const b of batches) {
  const v = [];
  for (let r = 0; r < repeat; r++) {
    for (const s of seqs) await s.clearHistory();
    const run = async (s, n) => { for (let i = 0; i < n; i++) await s.controlledEvaluate([[rnd(), {generateNext: {token: true, options: {temperature: 0}}}]]); };
    await Promise.all(seqs.slice(0, b).map((s) => run(s, 2)));
    const t = performance.now();
    await Promise.all(seqs.slice(0, b).map((s) => run(s, nDecode)));
    v.push(b * nDecode / ((performance.now() - t) / 1e3));
  }
  console.log(JSON.stringify({test: "decode", batch: b, tok_s: median(v)}));
}
console.log(JSON.stringify({rss_mb: process.memoryUsage().rss / 1e6}));
process.exit(0);
