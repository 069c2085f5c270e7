"""Pooling-based vision transformers (PiT) in JAX and Flax.

    import pit_jax

    model = pit_jax.create_model("pit_s", weights="hf:timm/pit_s_224.in1k")
    image = pit_jax.preprocess("cat.jpg", image_size=224)  # (1, 224, 224, 3), float32
    logits = model(image)  # (1, 1000)

`list_models()` names the models, `load_model` takes one with all its options from a file or a run
directory, `load_weights` gives parameters without a module, `model_config` the configuration
behind a name.
"""

from pit_jax.data.images import preprocess
from pit_jax.models.zoo import list_models, model_config
from pit_jax.version import __version__
from pit_jax.weights.create import create_model, load_model
from pit_jax.weights.load import load_weights

__all__ = [
    "__version__",
    "create_model",
    "list_models",
    "load_model",
    "load_weights",
    "model_config",
    "preprocess",
]
