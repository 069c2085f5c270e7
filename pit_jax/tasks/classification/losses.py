"""Cross entropy with soft targets, and DeiT's distillation from a teacher.

All losses are float32 scalars, means over a batch of B images of K classes. Under `jax.jit` the
mean is over the global batch, however it is sharded.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from pit_jax.errors import suggestion

DISTILLATIONS = ("hard", "soft")


def cross_entropy(outputs: Any, targets: jax.Array) -> jax.Array:
    """Mean over the batch of -sum_k targets * log_softmax(outputs).

    Args:
      outputs: logits (B, K), floating; or from a distilled model in training the pair (class
        logits, distillation logits), of which only the first counts, as in DeiT without a teacher.
      targets: distributions over classes (B, K), such as mixed and smoothed labels.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: the targets have another shape than the logits, such as class numbers.
    """
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    if targets.shape != logits.shape:
        raise ValueError(
            f"expected targets of shape {logits.shape} like the logits, found {targets.shape}; "
            "`mixing.smooth_targets` makes them from class numbers"
        )
    return optax.softmax_cross_entropy(
        logits.astype(jnp.float32), targets.astype(jnp.float32)
    ).mean()


def distillation_loss(
    outputs: Any,
    targets: jax.Array,
    teacher_logits: jax.Array,
    *,
    kind: str = "hard",
    alpha: float = 0.5,
    temperature: float = 1.0,
) -> jax.Array:
    """(1 - alpha) * cross entropy of the class token + alpha * distance of the distillation token
    from the teacher.

    With `kind` "hard", the distance is the cross entropy with the teacher's first class, without
    smoothing. With "soft", it is the Kullback-Leibler divergence of the student's from the
    teacher's distribution, both at `temperature` T, times T^2; as in DeiT's code, it is divided by
    the B * K logits instead of the B images. No gradient reaches the teacher.

    Args:
      outputs: pair of logits (B, K) of the two heads of a distilled student in training.
      targets: distributions over classes (B, K), for the class token.
      teacher_logits: logits (B, K) on the same batch the student saw, augmented and mixed.
      kind: one of `DISTILLATIONS`.
      alpha: weight of the teacher, in [0, 1].
      temperature: temperature T above 0; only "soft" uses it.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: the student has one head, the kind is unknown, alpha or temperature is out of
        range, or the shapes of logits and targets differ.
    """
    _check_options(kind, alpha, temperature)
    if not isinstance(outputs, tuple):
        raise ValueError(
            "distillation needs a student with a distillation head, which returns a pair of logits "
            "in training; this one returns a single array. Use the distilled variant of the model, "
            "such as pit_s_distilled for pit_s, or turn distillation off"
        )
    class_logits, logits = outputs
    if teacher_logits.shape != logits.shape:
        raise ValueError(
            f"the teacher's logits are {teacher_logits.shape}, the student's {logits.shape}: both "
            "must see the same batch and have the same classes"
        )
    logits = logits.astype(jnp.float32)
    teacher_logits = jax.lax.stop_gradient(teacher_logits).astype(jnp.float32)
    if kind == "hard":
        labels = jnp.argmax(teacher_logits, axis=-1)
        distance = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    else:
        student = jax.nn.log_softmax(logits / temperature)
        teacher = jax.nn.log_softmax(teacher_logits / temperature)
        divergence = jnp.mean(jnp.exp(teacher) * (teacher - student))
        distance = temperature**2 * divergence
    return (1.0 - alpha) * cross_entropy(class_logits, targets) + alpha * distance


def _check_options(kind: str, alpha: float, temperature: float) -> None:
    if kind not in DISTILLATIONS:
        raise ValueError(
            f"unknown distillation {kind!r}{suggestion(kind, DISTILLATIONS)}; there are "
            f"{', '.join(DISTILLATIONS)}"
        )
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1], found {alpha}")
    if temperature <= 0.0:
        raise ValueError(f"temperature must be above 0, found {temperature}")
