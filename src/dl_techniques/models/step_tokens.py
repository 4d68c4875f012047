"""The tokens of a training step: their targets, and what each weighs in the loss."""

from typing import Any, NamedTuple

from keras import ops

from dl_techniques.losses.nanovlm_loss import at_predictors, next_token_targets, token_weights
from dl_techniques.models.objectives import documents_with_image


class StepTokens(NamedTuple):
    """What each logit position learns; the loss is sum(weights * losses) / divisor.

    Attributes:
        targets: int32[B, L] of `next_token_targets`.
        weights: float32[B, L], with the factors of an `Objective`.
        divisor: float32[], of the whole batch, also where this is a replica's part of it.
        parts: name -> float32[B, L], the weights of the objective's parts, without its factors.
        sources: int32[B, L], k for a target of the k-th source, else 0; or None.
    """

    targets: Any
    weights: Any
    divisor: Any
    parts: dict
    sources: Any

    @classmethod
    def of_batch(cls, model, x, y, sample_weight=None, length=None):
        """Return those of a batch with `length` logit positions; default: one for each label."""
        ignored, objective = model.loss.ignore_index, model.objective
        targets = next_token_targets(y, length, ignored)
        weights = token_weights(targets, ops.shape(y), sample_weight, ignored)
        sources = x.get("source_ids") if model.source_names else None
        if sources is not None:
            sources = at_predictors(ops.cast(sources, "int32"), length)
        if objective is None:
            return cls(targets, weights, ops.sum(weights), {"vlm": weights}, sources)
        if objective.lambda_text is None:
            divisor = ops.sum(weights) / objective.lambda_vlm
            return cls(targets, weights, divisor, {"vlm": weights}, sources)
        with_image = ops.cast(documents_with_image(x, model.image_mark_ids), "float32")
        with_image = at_predictors(with_image, length)
        parts = {"vlm": weights * with_image, "text": weights * (1.0 - with_image)}
        factors = {"vlm": objective.lambda_vlm, "text": objective.lambda_text}
        # What has the factor 0 is not learned, and counts nowhere.
        parts = {name: part for name, part in parts.items() if factors[name]}
        shares = [factors[name] * ops.divide_no_nan(x, ops.sum(x)) for name, x in parts.items()]
        return cls(targets, sum(shares), ops.ones(()), parts, sources)

    @property
    def learned(self):
        """float32[B, L]: the weights without the factors of an objective."""
        return sum(self.parts.values())

    def rows(self, places, real):
        """Return the rows int32[R] of the batch; those that are not real, bool[R], weigh 0."""
        real = ops.cast(ops.expand_dims(real, 1), "float32")

        def weights(x):
            return ops.take(x, places, axis=0) * real

        return self._replace(
            targets=ops.take(self.targets, places, axis=0),
            weights=weights(self.weights),
            parts={name: weights(x) for name, x in self.parts.items()},
            sources=None if self.sources is None else ops.take(self.sources, places, axis=0),
        )

    def sums_of_parts(self, losses) -> dict:
        """Return name -> (sum of losses float32[B, L], sum of weights) of the parts."""
        return {name: (ops.sum(losses * x), ops.sum(x)) for name, x in self.parts.items()}

    def sums_of_sources(self, losses, count: int):
        """Return float32[count] each: the sums of losses float32[B, L] and of weights by source."""
        inside = ops.logical_and(self.sources > 0, self.sources <= count)
        ids = ops.reshape(ops.where(inside, self.sources, 0), (-1,))
        learned = self.learned
        return [
            ops.segment_sum(ops.reshape(x, (-1,)), ids, count + 1)[1:]
            for x in (losses * learned, learned)
        ]
