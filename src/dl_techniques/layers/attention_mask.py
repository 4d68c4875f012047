"""The one rule that says which token may look at which."""

from keras import ops


def attention_rule(
    query_slots,
    num_slots: int,
    attention_mask=None,
    segment_ids=None,
    image_ids=None,
    turn_ids=None,
):
    """Return who sees whom, and the positions that follow from it.

    Query i sees key j when they lie in the same segment, j is not padding, j <= i or both lie in
    the same image, and j belongs to i's turn or to all turns. Padding is applied last.

    Args:
        query_slots: int[T], the slots (places in the sequence) of the queries; int[B, T] where
            each row has its own.
        num_slots: S, the number of slots.
        attention_mask: bool[B, S]; False marks padding.
        segment_ids: int[B, S]; tokens of different segments do not see each other; 0 is padding.
        image_ids: int[B, S]; k > 0 for a token of image k, else 0. Give it for models whose image
            tokens see the whole of their image; None keeps them causal.
        turn_ids: int[B, S]; tokens of turn k > 0 are seen by turn k alone, those of 0 by all.

    Returns:
        (mask bool[B or 1, 1, T, S], positions int32[B or 1, T]: the number of real tokens of the
        same segment, and of its turn or all turns, before each query).
    """
    keys = ops.arange(num_slots, dtype="int32")
    if len(query_slots.shape) == 1:
        query_slots = ops.expand_dims(query_slots, 0)
    causal = ops.expand_dims(query_slots, 2) >= keys
    allowed = ops.ones((1, 1, num_slots), dtype="bool")
    if segment_ids is not None:
        allowed = _pairs(query_slots, segment_ids, _same_and_not_zero)
    if turn_ids is not None:
        same_turn = _pairs(query_slots, turn_ids, _same_or_key_is_zero)
        allowed = ops.logical_and(allowed, same_turn)
    if attention_mask is not None:
        allowed = ops.logical_and(allowed, ops.expand_dims(ops.cast(attention_mask, "bool"), 1))
    before = ops.logical_and(causal, allowed)
    positions = ops.maximum(ops.sum(ops.cast(before, "int32"), axis=-1) - 1, 0)
    if image_ids is not None:
        same_image = _pairs(query_slots, image_ids, _same_and_not_zero)
        before = ops.logical_and(ops.logical_or(causal, same_image), allowed)
    return ops.expand_dims(before, 1), positions


def _pairs(query_slots, ids, relation):
    if query_slots.shape[0] == 1:
        queries = ops.take(ids, query_slots[0], axis=1)
    else:
        queries = ops.take_along_axis(ids, query_slots, axis=1)
    return relation(ops.expand_dims(queries, 2), ops.expand_dims(ids, 1))


def _same_and_not_zero(query_ids, key_ids):
    return ops.logical_and(ops.equal(query_ids, key_ids), key_ids > 0)


def _same_or_key_is_zero(query_ids, key_ids):
    return ops.logical_or(ops.equal(query_ids, key_ids), ops.equal(key_ids, 0))
