"""Steps on TensorFlow, above all data parallel ones, under `tf.distribute.MirroredStrategy`.

Keras would run a whole step on every replica: each would divide its loss by its own number of
learned tokens, clip its own gradient, and could not skip a step (TensorFlow merges no gradients
inside of a condition). So only the passes through the model are mirrored here. Their losses are
weighted by tokens and their gradients added up; the optimizer then works once, as on one device,
and TensorFlow writes what it assigns to every replica.

With replicas or without, the optimizer's state is made before a step is compiled.
"""

import contextlib

import keras
from keras import ops

from dl_techniques.losses.nanovlm_loss import NanoVLMLoss


class MirroredSteps(keras.Model):
    """A model whose steps are right if it was created under a `MirroredStrategy`.

    A subclass has an `objective`, `step_tokens` and `loss_of_tokens` (see `TrainedModel`). Model,
    optimizer, metrics and `compile` belong inside `strategy.scope()`, the training outside.
    Every batch is split by rows over the replicas.

    Raises:
        ValueError: when a step is compiled inside the scope, with an optimizer from outside of it,
            or with a loss that cannot be divided: any but `NanoVLMLoss`, whose batches weigh what
            their tokens weigh. (A contrast would not see the other replicas' rows.)
    """

    @property
    def mirrored_strategy(self):
        """The strategy under which the model was created, or None."""
        return getattr(self, "_distribute_strategy", None)

    @property
    def distribute_strategy(self):
        """The strategy by which Keras runs steps, which mirror themselves."""
        if self.mirrored_strategy is None:
            return super().distribute_strategy
        import tensorflow as tf

        return tf.distribute.get_strategy()

    def _maybe_symbolic_build(self, *args, **kwargs):
        if self.mirrored_strategy is None:
            super()._maybe_symbolic_build(*args, **kwargs)
        else:  # Where Keras would build what is built, before it compiles a step.
            self._check_mirrored()

    def make_train_function(self, force=False):
        # A step that makes state is traced twice. A `LossScaleOptimizer` cannot be built again.
        if self.built and self.optimizer is not None and not self.optimizer.built:
            strategy = self.mirrored_strategy
            with contextlib.nullcontext() if strategy is None else strategy.scope():
                self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

    def train_step(self, *args):
        if self.mirrored_strategy is None:
            return super().train_step(*args)
        gradients = self._mirrored_pass(args[-1], training=True)
        self.optimizer.apply(gradients, self.trainable_variables)
        return self.get_metrics_result()

    def test_step(self, *args):
        if self.mirrored_strategy is None:
            return super().test_step(*args)
        self._mirrored_pass(args[-1], training=False)
        return self.get_metrics_result()

    def _mirrored_pass(self, data, training):
        """Update the metrics; return the batch's gradients when training."""
        import tensorflow as tf

        strategy, count = self.mirrored_strategy, self.mirrored_strategy.num_replicas_in_sync
        batch = keras.utils.unpack_x_y_sample_weight(data)

        def on_replica():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            places, real = _places(ops.shape(batch[1])[0], replica, count)
            x, y, weights = _part(batch, places, real, self.loss.ignore_index)
            with tf.GradientTape() as tape:
                y_pred = self(x, training=training)
                # Of the whole batch, as what the losses are divided by is counted there.
                tokens = self.step_tokens(*batch, length=ops.shape(y_pred)[1])
                loss = self.loss_of_tokens(y_pred, tokens.rows(places, real))
                scaled = self.optimizer.scale_loss(loss) if training else loss
            # The mean over replicas of what they report is the sum of their shares.
            weight = ops.cast(ops.shape(batch[1])[0], "float32") / count
            self._loss_tracker.update_state(loss * count, sample_weight=weight)
            self.compute_metrics(x, y, y_pred, weights)
            if not training:
                return []
            gradients = tape.gradient(scaled, [v.value for v in self.trainable_variables])
            return [None if g is None else tf.convert_to_tensor(g) for g in gradients]

        results = strategy.experimental_local_results
        gradients = strategy.run(on_replica)
        return [None if g is None else tf.add_n(results(g)) for g in gradients]

    def _check_mirrored(self):
        import tensorflow as tf

        if not isinstance(self.mirrored_strategy, tf.distribute.MirroredStrategy):
            raise ValueError(
                f"Models train under a MirroredStrategy, not {self.mirrored_strategy!r}."
            )
        if tf.distribute.has_strategy():
            raise ValueError(
                "Train and evaluate outside of strategy.scope(); model, optimizer and compile "
                "belong inside."
            )
        if not isinstance(self.loss, NanoVLMLoss) or self.losses:
            raise ValueError(
                "Several replicas can share NanoVLMLoss alone, by its tokens, without losses "
                f"from layers; got {self.loss!r} and {len(self.losses)} losses of layers."
            )
        if self.objective is not None and self.objective.learns_contrast:
            raise ValueError(
                "Several replicas cannot share a contrast: each would see its own rows only as "
                "negatives. Set lambda_contrast=0, or distribute on JAX, whose arrays hold the "
                "whole batch."
            )
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        for part in (self.optimizer, optimizer, *getattr(optimizer, "optimizers", ())):
            if part is not None and part._distribution_strategy is not self.mirrored_strategy:
                raise ValueError(
                    f"The optimizer {part.name!r} was created outside of strategy.scope(), the "
                    "model inside: create both inside."
                )


def _places(rows, replica, count):
    """Return int32[R], a replica's rows, and which are real: all replicas get as many."""
    size = (rows + count - 1) // count
    places = replica * size + ops.arange(size, dtype="int32")
    return ops.minimum(places, rows - 1), places < rows


def _part(batch, places, real, ignore_index):
    """Return the rows int32[R] of a batch, without labels where they are not real."""
    import tensorflow as tf

    # On the host, so that a device is sent its own rows only.
    with tf.device("CPU:0"):
        x, labels, weights = keras.tree.map_structure(
            lambda array: None if array is None else tf.gather(array, places), batch
        )
        return x, ops.where(ops.expand_dims(real, 1), labels, ignore_index), weights
