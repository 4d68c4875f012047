"""`VisionLanguageModel.generate`: checks, then a run or a beam search."""

from dl_techniques.generation.arguments import (
    check_length,
    check_pad,
    checked_processors,
    checked_stop_ids,
    checked_stop_strings,
    find_sampler,
    row_seeds,
)
from dl_techniques.generation.beam_search import BeamSearch, beam_search
from dl_techniques.generation.engine import Request
from dl_techniques.generation.prompts import gather_prompts
from dl_techniques.generation.run import Run
from dl_techniques.generation.sampling import Sampler
from dl_techniques.generation.text_stream import TextStream


def generate(
    model,
    inputs,
    max_new_tokens: int = 64,
    sampler: str | Sampler | BeamSearch = "greedy",
    stop_ids=None,
    stop_strings=(),
    seed=0,
    stream: bool = False,
    return_logprobs: bool = False,
    vision_embeds=None,
    pad_token_id: int | None = None,
    logits_processors=(),
    session=None,
):
    """Continue prompts: a method of `VisionLanguageModel`.

    Args:
        model: The model itself.
        inputs: A question (text), a conversation (a list of messages), or a list of these, for
            models with a `processor`; or arrays as for a call, padded on either side.
        max_new_tokens: N, the most new tokens per row.
        sampler: "greedy", "sample", a `Sampler` or a `BeamSearch`.
        stop_ids: A row ends with the first of these (which is part of the ids). Default: those
            of the processor's tokenizer and template and of the model (`stop_ids`), together.
        stop_strings: A row ends where its text has one of these, which is not part of the text.
        seed: What a `Sampler` draws depends on the row's seed alone, never on its neighbours:
            int[B], or an int for the seeds seed, seed + 1, ...
        stream: Return an iterator of pieces instead: texts, of several rows lists of them; or
            int32[B] ids, one column after the other. Closing it ends the work.
        return_logprobs: Return (result, float32[B, N]): the model's log-probability of each new
            id, before any sampler; 0 after a row's end.
        vision_embeds: float[B, I, T, D] from `encode_vision`, instead of `images`.
        pad_token_id: What stands after a row's end. Default: the processor's, else 0.
        logits_processors: Functions (logits float32[B, V], ids int32[B, >= N], i) -> logits,
            where ids[:, :i] are the new ids so far; they are compiled (use `keras.ops`), a
            function of its own every time anew.
        session: A `Session`: the cache of a conversation is kept for its next turn.

    Returns:
        Texts for texts (one for one), else int32[B, N] new ids.

    Raises:
        ValueError: if prompt and new tokens together exceed the decoder's `max_positions`, or
            an argument is malformed; before anything is computed.
    """
    sampler, processor = find_sampler(sampler), model.processor
    stop_strings = checked_stop_strings(stop_strings)
    if stop_strings and processor is None:
        raise ValueError("Stop strings need a tokenizer: set model.processor.")
    if stop_ids is None:
        stop_ids = {*model.stop_ids, *(() if processor is None else processor.stop_ids)}
    stop_ids = checked_stop_ids(model, stop_ids)
    if pad_token_id is None:
        pad_token_id = 0 if processor is None else processor.pad_token_id
    check_pad(model, pad_token_id)
    logits_processors = checked_processors(logits_processors)
    if stream and return_logprobs:
        raise ValueError("return_logprobs needs the whole result: stream=False.")
    searches = isinstance(sampler, BeamSearch)
    if searches:
        _refuse(
            stream=stream,
            session=session,
            logits_processors=logits_processors,
            stop_strings=stop_strings,
        )
    prompts = gather_prompts(model, inputs, vision_embeds)
    if session is not None and not (prompts.as_text and prompts.rows == 1):
        raise ValueError(
            f"A session needs one conversation, got {prompts.rows} "
            f"{'conversations' if prompts.as_text else 'rows of arrays'}."
        )
    check_length(model, prompts.positions, max_new_tokens, "max_new_tokens")
    seeds = row_seeds(seed, prompts.rows)
    # Everything is checked: from here on something is computed.
    engine, turn, known = model.generation_engine(), None, ()
    if session is not None:
        turn = session.begin(model, prompts.read[0], max_new_tokens)
        prompts.read, known = [turn.part], tuple(turn.known)
    batch = prompts.batch(engine, model)
    if searches:
        ids, logprobs = beam_search(engine, batch, max_new_tokens, sampler, stop_ids, pad_token_id)
        texts = [_whole_text(processor, row, stop_ids) for row in ids] if prompts.as_text else None
        return _result(prompts, ids, texts, logprobs if return_logprobs else None)
    request = Request(
        max_new_tokens, sampler, seeds, stop_ids, pad_token_id, logits_processors, known
    )
    texts = None
    if prompts.as_text or stop_strings:
        texts = [TextStream(processor.decode, stop_ids, stop_strings) for _ in seeds]
    run = Run(engine, batch, request, texts, bool(stop_strings), session, turn)
    if stream:
        return run.pieces(prompts.single) if prompts.as_text else run.columns()
    ids, logprobs = run.finish()
    texts = [text.text for text in texts] if prompts.as_text else None
    return _result(prompts, ids, texts, logprobs if return_logprobs else None)


def _refuse(**arguments):
    given = [name for name, value in arguments.items() if value]
    if given:
        raise ValueError(f"Beam search does not go with {given}.")


def _whole_text(processor, ids, stop_ids):
    text = TextStream(processor.decode, stop_ids)
    text.push(ids)
    text.finish()
    return text.text


def _result(prompts, ids, texts, logprobs):
    result = ids if texts is None else texts[0] if prompts.single else texts
    return result if logprobs is None else (result, logprobs)
