"""The demo model in torch: a Gemma 4 text decoder with per-layer embeddings, in the shape of E2B and small.

The same mathematics as engine/model/gemma4.cc (check_parity.py compares the logits), arranged so that one CPU core
trains it in twenty minutes:
  - weights are held under the names of a released checkpoint, in one flat tensor;
  - the weight of a norm before a projection is multiplied into the projection, which is smaller than the activations;
  - norms, RoPE and the gated product have backward passes of their own, with fewer passes over memory;
  - logits are wanted only where the model has to say something. Layers that read other layers' keys and values are
    computed at those positions only (the server does the same with a prompt).
"""

import dataclasses
import math

import torch

F = torch.nn.functional


@dataclasses.dataclass
class Config:
    vocab: int = 2048
    hidden: int = 128
    layers: int = 10
    own_layers: int = 5  # those below make their own keys and values
    full_every: int = 5
    heads: int = 4
    kv_heads: int = 1
    head_dim: int = 32   # of the layers with a window; as all widths a multiple of the quantised types' blocks
    global_head_dim: int = 64
    ffn: int = 256       # twice that in the sharing layers
    ple: int = 128       # 0: no per-layer embeddings
    window: int = 64
    softcap: float = 30.0
    eps: float = 1e-6
    rope_partial: float = 0.25
    context: int = 4096

    def full(self, layer):
        return (layer + 1) % self.full_every == 0

    def dim(self, layer):
        return self.global_head_dim if self.full(layer) else self.head_dim

    def donor(self, layer):
        return max(i for i in range(min(layer + 1, self.own_layers)) if self.full(i) == self.full(layer))

    def width(self, layer):
        return self.ffn * (2 if layer >= self.own_layers else 1)


class Norm(torch.autograd.Function):
    """x / rms(x) over the last axis, without a weight."""

    @staticmethod
    def forward(ctx, x, eps):
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
        y = x * r
        ctx.save_for_backward(y, r)
        return y

    @staticmethod
    def backward(ctx, grad):
        y, r = ctx.saved_tensors
        m = (grad * y).mean(-1, keepdim=True)
        return torch.addcmul(grad, y, m, value=-1).mul_(r), None


class GatedProduct(torch.autograd.Function):
    """gelu_tanh(gate) * up, as gate * sigmoid(2 sqrt(2/pi) (gate + 0.044715 gate^3)) * up."""

    C = 2 * math.sqrt(2 / math.pi)

    @staticmethod
    def forward(ctx, gate, up):
        s = gate.square().mul_(0.044715 * GatedProduct.C).add_(GatedProduct.C).mul_(gate).sigmoid_()
        ctx.save_for_backward(gate, up, s)
        return (gate * s).mul_(up)

    @staticmethod
    def backward(ctx, grad):
        gate, up, s = ctx.saved_tensors
        value = gate * s
        slope = gate.square().mul_(3 * 0.044715 * GatedProduct.C).add_(GatedProduct.C).mul_(value)
        slope.mul_(1 - s).add_(s).mul_(up).mul_(grad)
        return slope, value.mul_(grad)


class Rope(torch.autograd.Function):
    """Turns dims i and i + D/2 of x [.., D] by the angle whose cosine and sine are given, [.., D/2]."""

    @staticmethod
    def turn(x, cos, sin):
        half = x.shape[-1] // 2
        a, b = x[..., :half], x[..., half:]
        return torch.cat([torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)], -1)

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return Rope.turn(x, cos, sin)

    @staticmethod
    def backward(ctx, grad):
        cos, sin = ctx.saved_tensors
        return Rope.turn(grad, cos, -sin), None, None


def shapes(c):
    """name -> (shape, standard deviation or None, constant or None)."""
    out = {"embed_tokens.weight": ((c.vocab, c.hidden), c.hidden ** -0.5, None),
           "norm.weight": ((c.hidden,), None, 1.0)}
    if c.ple:
        out["embed_tokens_per_layer.weight"] = ((c.vocab, c.layers * c.ple), c.ple ** -0.5, None)
        out["per_layer_model_projection.weight"] = ((c.layers * c.ple, c.hidden), c.hidden ** -0.5, None)
        out["per_layer_projection_norm.weight"] = ((c.ple,), None, 1.0)
    update = (2 * c.layers) ** -0.5  # what a block adds to the stream at first
    for i in range(c.layers):
        p = "layers.%d." % i
        dim, width = c.dim(i), c.width(i)

        def matrix(name, rows, cols):
            out[p + name + ".weight"] = ((rows, cols), cols ** -0.5, None)

        def vector(name, size, value):
            out[p + name + ".weight"] = ((size,), None, value)

        for name in ("input_layernorm", "pre_feedforward_layernorm"):
            vector(name, c.hidden, 1.0)
        for name in ("post_attention_layernorm", "post_feedforward_layernorm"):
            vector(name, c.hidden, update)
        matrix("self_attn.q_proj", c.heads * dim, c.hidden)
        vector("self_attn.q_norm", dim, dim ** -0.25)
        if i < c.own_layers:
            matrix("self_attn.k_proj", c.kv_heads * dim, c.hidden)
            matrix("self_attn.v_proj", c.kv_heads * dim, c.hidden)
            vector("self_attn.k_norm", dim, dim ** -0.25)
        matrix("self_attn.o_proj", c.hidden, c.heads * dim)
        matrix("mlp.gate_proj", width, c.hidden)
        matrix("mlp.up_proj", width, c.hidden)
        matrix("mlp.down_proj", c.hidden, width)
        if c.ple:
            matrix("per_layer_input_gate", c.ple, c.hidden)
            matrix("per_layer_projection", c.hidden, c.ple)
            vector("post_per_layer_input_norm", c.hidden, update)
        out[p + "layer_scalar"] = ((1,), None, 1.0)
    return out


class Model:
    def __init__(self, config, flat=None, seed=1):
        self.config = config
        self.spec = shapes(config)
        self.size = sum(math.prod(shape) for shape, _, _ in self.spec.values())
        if flat is None:
            flat = torch.empty(self.size)
            self.initialise(flat, seed)
        self.flat = flat
        self.w = {}
        self.ropes = {}
        self.bind(flat)

    def initialise(self, flat, seed):
        generator = torch.Generator().manual_seed(seed)
        at = 0
        for shape, deviation, constant in self.spec.values():
            n = math.prod(shape)
            if constant is None:
                flat[at:at + n] = torch.randn(n, generator=generator) * deviation
            else:
                flat[at:at + n] = constant
            at += n

    def views(self, flat):
        out, at = {}, 0
        for name, (shape, _, _) in self.spec.items():
            n = math.prod(shape)
            out[name] = flat[at:at + n].view(shape)
            at += n
        return out

    def bind(self, flat):
        self.w = {name: view.requires_grad_() for name, view in self.views(flat.detach()).items()}

    def rope(self, full, positions):
        if full not in self.ropes:
            c = self.config
            dim = c.global_head_dim if full else c.head_dim
            frequencies = (1e6 if full else 1e4) ** (-2.0 * torch.arange(dim // 2, dtype=torch.float64) / dim)
            if full:
                frequencies[int(c.rope_partial * dim / 2):] = 0
            angles = torch.arange(c.context)[:, None] * frequencies.float()
            self.ropes[full] = (angles.cos(), angles.sin())
        cos, sin = self.ropes[full]
        return cos[positions], sin[positions]

    def layer(self, i, x, q_rows, positions, mask, kv, ple):
        """x [B, T, d]; q_rows picks the rows that go on, [B, M] or None for all; mask [B or 1, M, T] of 0 and -inf."""
        c, w = self.config, self.w
        p = "layers.%d." % i
        full, dim = c.full(i), c.dim(i)

        def project(n, name, norm):
            return F.linear(n, w[p + name + ".weight"] * w[p + norm + ".weight"])

        n = Norm.apply(x, c.eps)
        if i < c.own_layers:
            t = x.shape[1]
            cos, sin = self.rope(full, torch.arange(t))
            both = F.linear(n, torch.cat([w[p + "self_attn.k_proj.weight"], w[p + "self_attn.v_proj.weight"]])
                            * w[p + "input_layernorm.weight"])
            k = Norm.apply(both[..., :dim], c.eps) * w[p + "self_attn.k_norm.weight"]
            kv[i] = (Rope.apply(k, cos, sin), Norm.apply(both[..., dim:], c.eps))
            if q_rows is not None:
                x, n, ple = pick(x, q_rows), pick(n, q_rows), pick(ple, q_rows)
        k, v = kv[c.donor(i)]
        batch, m = x.shape[:2]
        cos, sin = self.rope(full, positions)  # [m, D/2] or [B, m, D/2]
        q = project(n, "self_attn.q_proj", "input_layernorm").view(batch, m, c.heads, dim)
        q = Norm.apply(q, c.eps) * w[p + "self_attn.q_norm.weight"]
        q = Rope.apply(q, cos.unsqueeze(-2), sin.unsqueeze(-2))
        q = q.transpose(1, 2).reshape(batch, c.heads * m, dim)
        scores = torch.bmm(q, k.transpose(1, 2)).view(batch, c.heads, m, -1) + mask[:, None]
        a = torch.bmm(scores.softmax(-1).view(batch, c.heads * m, -1), v)
        a = a.view(batch, c.heads, m, dim).transpose(1, 2).reshape(batch, m, c.heads * dim)
        a = F.linear(a, w[p + "self_attn.o_proj.weight"])
        x = torch.addcmul(x, Norm.apply(a, c.eps), w[p + "post_attention_layernorm.weight"])
        n = Norm.apply(x, c.eps)
        f = GatedProduct.apply(project(n, "mlp.gate_proj", "pre_feedforward_layernorm"),
                               project(n, "mlp.up_proj", "pre_feedforward_layernorm"))
        f = F.linear(f, w[p + "mlp.down_proj.weight"])
        x = torch.addcmul(x, Norm.apply(f, c.eps), w[p + "post_feedforward_layernorm.weight"])
        if c.ple:
            u = GatedProduct.apply(F.linear(x, w[p + "per_layer_input_gate.weight"]), ple[..., i * c.ple:(i + 1) * c.ple])
            u = F.linear(u, w[p + "per_layer_projection.weight"])
            x = torch.addcmul(x, Norm.apply(u, c.eps), w[p + "post_per_layer_input_norm.weight"])
        return x * w[p + "layer_scalar"], ple

    def forward(self, ids, rows):
        """ids [B, T], rows [B, M] positions whose logits are wanted -> logits [B, M, V], after the softcap."""
        c, w = self.config, self.w
        batch, t = ids.shape
        x = F.embedding(ids, w["embed_tokens.weight"]) * math.sqrt(c.hidden)
        ple = None
        if c.ple:
            projected = F.linear(x, w["per_layer_model_projection.weight"]) * c.hidden ** -0.5
            projected = Norm.apply(projected.view(batch, t, c.layers, c.ple), c.eps)
            table = F.embedding(ids, w["embed_tokens_per_layer.weight"]).view(batch, t, c.layers, c.ple)
            ple = torch.addcmul(table * math.sqrt(c.ple), projected, w["per_layer_projection_norm.weight"]) * 0.5 ** 0.5
            ple = ple.view(batch, t, c.layers * c.ple)
        all_rows = torch.arange(t)
        masks = {}
        for full in (False, True):
            distance = all_rows[:, None] - all_rows[None]
            seen = (distance >= 0) if full else (distance >= 0) & (distance < c.window)
            masks[full] = torch.zeros(t, t).masked_fill_(~seen, float("-inf"))
        row_masks = {full: mask[rows] for full, mask in masks.items()}
        kv = {}
        for i in range(c.layers):
            last_owner = i == c.own_layers - 1
            if i < c.own_layers - 1:
                x, _ = self.layer(i, x, None, all_rows, masks[c.full(i)][None], kv, ple)
            else:
                x, ple = self.layer(i, x, rows if last_owner else None, rows, row_masks[c.full(i)], kv, ple)
        h = F.linear(Norm.apply(x, c.eps), w["embed_tokens.weight"] * w["norm.weight"])
        return torch.tanh(h / c.softcap) * c.softcap


def pick(x, rows):
    """x [B, T, n] at rows [B, M] -> [B, M, n]."""
    if x is None:
        return None
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))
