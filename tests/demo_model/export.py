"""Writes a trained checkpoint as a Hugging Face folder, for `embergate convert`; weights as BF16, as released ones are.

  python3 export.py --run FOLDER [--checkpoint last.pt] --out FOLDER
"""

import argparse
import json
import os
import shutil

import torch

import model as models
import safetensors_file


def load(path):
    """The model that is exported: what was trained, rounded to what BF16 holds."""
    content = torch.load(path)
    return models.Model(models.Config(**content["config"]), content["flat"].bfloat16().float()), content


def configuration(c):
    types = ["full_attention" if c.full(i) else "sliding_attention" for i in range(c.layers)]
    return {
        "architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "dtype": "bfloat16",
        "vocab_size": c.vocab, "vocab_size_per_layer_input": c.vocab, "hidden_size": c.hidden,
        "hidden_size_per_layer_input": c.ple, "intermediate_size": c.ffn, "use_double_wide_mlp": True,
        "num_hidden_layers": c.layers, "num_kv_shared_layers": c.layers - c.own_layers, "layer_types": types,
        "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads, "head_dim": c.head_dim,
        "global_head_dim": c.global_head_dim, "num_global_key_value_heads": None, "attention_k_eq_v": False,
        "attention_bias": False, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": c.eps,
        "sliding_window": c.window, "max_position_embeddings": c.context, "final_logit_softcapping": c.softcap,
        "rope_parameters": {
            "full_attention": {"rope_type": "proportional", "rope_theta": 1000000.0,
                               "partial_rotary_factor": c.rope_partial},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}},
        "enable_moe_block": False, "tie_word_embeddings": True,
        "bos_token_id": 2, "eos_token_id": [1, 106], "pad_token_id": 0}


def export(model, tokenizer_path, out):
    os.makedirs(out, exist_ok=True)
    tensors = {"model." + name: safetensors_file.bfloat16(view.detach().numpy()) for name, view in model.w.items()}
    safetensors_file.write(os.path.join(out, "model.safetensors"), tensors)
    shutil.copy(tokenizer_path, os.path.join(out, "tokenizer.json"))
    files = {
        "config.json": configuration(model.config),
        # The likeliest token always: a gateway's answers should not vary. 50 opens a tool's result, which the caller
        # has to supply.
        "generation_config.json": {"bos_token_id": 2, "eos_token_id": [1, 106, 50], "pad_token_id": 0,
                                   "do_sample": False},
        "tokenizer_config.json": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>",
                                  "unk_token": "<unk>", "mask_token": "<mask>", "eot_token": "<turn|>",
                                  "sot_token": "<|turn>", "tokenizer_class": "GemmaTokenizer", "add_bos_token": False,
                                  "clean_up_tokenization_spaces": False},
    }
    for name, content in files.items():
        with open(os.path.join(out, name), "w") as file:
            json.dump(content, file, indent=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="what train.py wrote")
    parser.add_argument("--checkpoint", default="last.pt")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    model, content = load(os.path.join(args.run, args.checkpoint))
    export(model, os.path.join(args.run, "tokenizer.json"), args.out)
    print("%s: step %d" % (args.out, content["step"]))


if __name__ == "__main__":
    main()
