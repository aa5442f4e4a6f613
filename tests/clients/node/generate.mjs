// Streams an answer: node generate.mjs HOST:PORT PROMPT [PROTO_FOLDER]; after npm install
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [address, prompt, protos = "../../../proto"] = process.argv.slice(2);
const definition = loader.loadSync("embergate/v1/inference.proto",
  { includeDirs: [protos], keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true });
const { Inference } = grpc.loadPackageDefinition(definition).embergate.v1;
const client = new Inference(address, grpc.credentials.createInsecure());
const stream = client.Generate({
  chat: { messages: [{ role: "ROLE_USER", content: prompt }] },
  sampling: { seed: 1 },
  stopping: { max_tokens: 100 },
}, { deadline: Date.now() + 60_000 });
stream.on("data", (message) => {
  if (message.event === "delta") process.stdout.write(message.delta.text);
  if (message.event === "finished") console.log("\n", message.finished.receipt);
});
stream.on("error", (error) => { console.error(error.message); process.exitCode = 1; });
