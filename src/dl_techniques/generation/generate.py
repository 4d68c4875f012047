"""What `VisionLanguageModel.generate` runs: checks, then a run or a beam search."""

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
from dl_techniques.generation.text_stream import TextStream


def generate(
    model,
    inputs,
    max_new_tokens,
    sampler,
    stop_ids,
    stop_strings,
    seed,
    stream,
    return_logprobs,
    vision_embeds,
    pad_token_id,
    logits_processors,
    session,
):
    """See `VisionLanguageModel.generate`."""
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
