// Classify one image through fieldmark.v1: node classify.js IMAGE [HOST:PORT]
// Once: npm install --prefix docs/examples @grpc/grpc-js @grpc/proto-loader
const fs = require("node:fs");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const proto = path.join(__dirname, "../../serving/gateway/proto/fieldmark/v1/fieldmark.proto");
const { fieldmark } = grpc.loadPackageDefinition(loader.loadSync(proto, { keepCase: true }));
const [, , image, address = "localhost:8010"] = process.argv;
const client = new fieldmark.v1.Fieldmark(address, grpc.credentials.createInsecure());

const request = { image: fs.readFileSync(image), top_k: 3 };
client.Classify(request, { deadline: Date.now() + 10_000 }, (problem, answer) => {
  if (problem) {
    console.error(`${grpc.status[problem.code]}: ${problem.details}`);
    process.exit(1);
  }
  for (const { label, probability } of answer.predictions) console.log(`${label}: ${probability.toFixed(3)}`);
  const { p_value, flagged } = answer.adversarial;
  console.log(`p-value ${p_value.toFixed(4)}, ${flagged ? "FLAGGED" : "not flagged"}`);
  client.close();
});
