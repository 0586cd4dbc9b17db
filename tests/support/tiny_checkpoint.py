"""A checkpoint of one layer with a tokenizer and a template for chats, as small as an emulated GPU wants it.

The weights are random, always the same ones. The seed is one of sixty, chosen so that in no answer to the
tests' prompts two tokens are so near each other (0.01 in the logarithm) that rounding could change the choice.
"""
import json
import os
import random
import struct

HIDDEN, INNER, VOCAB, CONTEXT = 64, 64, 300, 64
END, START, STOP = VOCAB - 3, VOCAB - 2, VOCAB - 1  # <|endoftext|>, <|im_start|>, <|im_end|>
TEMPLATE = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + ':' + m['content'] + '<|im_end|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}")
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
          "intermediate_size": INNER, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
          "vocab_size": VOCAB, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
          "tie_word_embeddings": False, "torch_dtype": "float16", "bos_token_id": END, "eos_token_id": STOP}


def shapes():
    half, block = HIDDEN // 2, "model.layers.0."
    return {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN),
            "model.norm.weight": (HIDDEN,), block + "input_layernorm.weight": (HIDDEN,),
            block + "post_attention_layernorm.weight": (HIDDEN,),
            block + "self_attn.q_proj.weight": (HIDDEN, HIDDEN), block + "self_attn.k_proj.weight": (half, HIDDEN),
            block + "self_attn.v_proj.weight": (half, HIDDEN), block + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            block + "mlp.gate_proj.weight": (INNER, HIDDEN), block + "mlp.up_proj.weight": (INNER, HIDDEN),
            block + "mlp.down_proj.weight": (HIDDEN, INNER)}


def spread(name, shape):
    """Large embeddings and small blocks: what rounding does inside a block weighs little in the logits."""
    if len(shape) == 1:
        return 0
    return 1 if "embed" in name else (4 if "head" in name else 1) * shape[1] ** -0.5


def write_weights(path, seed):
    rng = random.Random(seed)
    head, data = {}, b""
    for name, shape in shapes().items():
        n, width = shape[0] * (shape[1] if len(shape) > 1 else 1), 12 ** 0.5 * spread(name, shape)
        values = [(rng.random() - 0.5) * width if width else 1.0 for _ in range(n)]
        head[name] = {"dtype": "F16", "shape": shape, "data_offsets": [len(data), len(data) + 2 * n]}
        data += struct.pack(f"<{n}e", *values)
    text = json.dumps(head).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def cut_tokenizer(path):
    """The first tokens of a byte-level tokenizer, and its first three special ones."""
    with open(path) as f:
        whole = json.load(f)
    model = whole["model"]
    model["vocab"] = {token: i for token, i in model["vocab"].items() if i < END}
    model["merges"] = [m for m in model["merges"] if m.replace(" ", "") in model["vocab"]]
    whole["added_tokens"] = [dict(t, id=END + i) for i, t in enumerate(whole["added_tokens"][:3])]
    return whole


def write(folder, tokenizer, seed=56):
    """The files of a checkpoint; greedy unless a request says otherwise."""
    os.makedirs(folder)
    greedy = {"do_sample": False, "bos_token_id": END, "eos_token_id": [END, STOP]}
    for name, value in [("config.json", CONFIG), ("tokenizer.json", cut_tokenizer(tokenizer)),
                        ("tokenizer_config.json", {"chat_template": TEMPLATE}), ("generation_config.json", greedy)]:
        with open(os.path.join(folder, name), "w") as f:
            json.dump(value, f)
    write_weights(os.path.join(folder, "model.safetensors"), seed)
