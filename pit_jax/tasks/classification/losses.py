"""Cross entropy with soft targets, and DeiT's distillation from a teacher.

All losses are float32 scalars, means over a batch of B images of K classes. Under `jax.jit` that is
the global batch, however it is sharded.
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
      outputs: logits (B, K), floating; of a distilled model in training the pair (class logits,
        distillation logits), of which only the first has a say, as in DeiT without a teacher.
      targets: distributions over classes (B, K), as labels are after mixing and smoothing.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: targets of another shape than the logits, such as class numbers.
    """
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    if targets.shape != logits.shape:
        raise ValueError(
            f"expected targets of shape {logits.shape} like the logits, found {targets.shape}; "
            "`mixing.smooth_targets` makes them of class numbers"
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

    The distance is, with `kind` "hard", the cross entropy with the class the teacher ranks first,
    without smoothing; with "soft", the Kullback-Leibler divergence of the student's from the
    teacher's distribution, both at `temperature` T, times T^2 and, as DeiT has it, divided by the
    B * K logits instead of the B images. No gradient reaches the teacher.

    Args:
      outputs: of a distilled student in training, the pair of logits (B, K) of its two heads.
      targets: distributions over classes (B, K), for the class token.
      teacher_logits: (B, K), on the same batch as the student saw, mixed and augmented.
      kind: of `DISTILLATIONS`.
      alpha: weight of the teacher, in [0, 1].
      temperature: above 0; only "soft" uses it.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: a student with one head, an unknown kind, a weight or temperature out of range,
        logits or targets whose shapes differ.
    """
    check_distillation(kind, alpha, temperature)
    if not isinstance(outputs, tuple):
        raise ValueError(
            "distillation needs a student with a distillation head, which gives a pair of logits "
            "in training; this one gives a single array. Take the distilled variant of the model, "
            "such as pit_s_distilled for pit_s, or turn distillation off"
        )
    class_logits, logits = outputs
    if teacher_logits.shape != logits.shape:
        raise ValueError(
            f"the teacher's logits are {teacher_logits.shape}, the student's {logits.shape}: both "
            "must see the same batch and tell the same classes apart"
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


def check_distillation(kind: str, alpha: float, temperature: float) -> None:
    """Refuses options of `distillation_loss` that are out of range."""
    if kind not in DISTILLATIONS:
        raise ValueError(
            f"unknown distillation {kind!r}{suggestion(kind, DISTILLATIONS)}; there are "
            f"{', '.join(DISTILLATIONS)}"
        )
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1], found {alpha}")
    if temperature <= 0.0:
        raise ValueError(f"temperature must be above 0, found {temperature}")
