"""Maps the parameter names of the original Sudoku model to ours."""

import jax
import numpy as np

NAMES = {"row": "row", "col": "column", "box": "box"}
TOP = {"initial_encoder": "embed", "pred_proj": "feedback", "output_head": "head"}
LAYER = {"self_attn.out_proj": ("attn", "o"), "out_proj": ("attn", "o")}
LAYER |= {"linear1": ("mlp", "fc1"), "linear2": ("mlp", "fc2")}
LAYER |= {f"{name}_proj": ("attn", name) for name in "qkv"}


def ours(name, value):
    """Returns (path in our parameters, layer or None, value) for each part of an array of the original."""
    if name.endswith("_embed.weight"):
        return [((NAMES[name.removesuffix("_embed.weight")],), None, value)]
    module, leaf = name.rsplit(".", 1)
    if module in TOP:
        return [((TOP[module], *of_linear(leaf)), None, value.T)]
    layer, module = name.removeprefix("transformer.").removeprefix("layers.").split(".", 1)
    module, leaf = module.rsplit(".", 1)
    if leaf.startswith("in_proj_"):
        parts = zip("qkv", np.split(value, 3), strict=True)
        leaf = of_linear(leaf.removeprefix("in_proj_"))
        return [(("blocks", "attn", part, *leaf), int(layer), v.T) for part, v in parts]
    if module.startswith("norm"):
        return [(("blocks", module, "scale" if leaf == "weight" else "bias"), int(layer), value)]
    return [(("blocks", *LAYER[module], *of_linear(leaf)), int(layer), value.T)]


def of_linear(leaf):
    return ("kernel" if leaf == "weight" else "bias",)


def entries(arrays, prefix):
    for name, value in arrays.items():
        if name.startswith(prefix):
            yield from ours(name.removeprefix(prefix), value)


def params_of(network, found):
    """Builds the parameters of a network in float64 from `entries`, which must cover all of them."""
    params = jax.tree.map(lambda a: np.full(a.shape, np.nan), network.abstract)
    for path, layer, value in found:
        *parents, leaf = path
        node = params
        for parent in parents:
            node = node[parent]
        node[leaf][() if layer is None else layer] = value
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(params))
    return params
