// What transformers.js answers about images, from a local folder alone.
//
//     node run.mjs '{"folder": ..., "dtype": ..., "prompt": ..., "images": [...], "tokens": N}'
//
// prints one {"prompt": [ids], "tokens": [ids], "text": ...} for each image, as a JSON list.
import path from "node:path";
import { AutoModelForImageTextToText, AutoProcessor, env, RawImage } from "@huggingface/transformers";

const { folder, dtype, prompt, images, tokens } = JSON.parse(process.argv[2]);
env.allowRemoteModels = false;
env.useFSCache = false;
env.localModelPath = `${path.dirname(folder)}/`;
const name = path.basename(folder);
const local = { local_files_only: true };

const processor = await AutoProcessor.from_pretrained(name, local);
const model = await AutoModelForImageTextToText.from_pretrained(name, {
  ...local,
  device: "cpu",
  dtype,
  session_options: { intraOpNumThreads: 1, interOpNumThreads: 1 },
});
const answers = [];
for (const image of images) {
  const inputs = await processor(await RawImage.read(image), prompt);
  const made = await model.generate({
    ...inputs,
    max_new_tokens: tokens,
    do_sample: false,
    eos_token_id: null,
  });
  const ids = made.tolist()[0].map(Number);
  const read = inputs.input_ids.dims.at(-1);
  answers.push({
    prompt: ids.slice(0, read),
    tokens: ids.slice(read),
    text: processor.tokenizer.decode(ids.slice(read), { skip_special_tokens: true }),
  });
}
console.log(JSON.stringify(answers));
await model.dispose();
