"""GenerationStatistics: what generation has cost so far."""

import time


class GenerationStatistics:
    """Counts of one model.

    Args:
        programs: Whose `compilations` are reported.
    """

    def __init__(self, programs):
        self._programs = programs
        self._counts = {
            "requests": 0,
            "prompt_tokens": 0,
            "prefill_seconds": 0.0,
            "new_tokens": 0,
            "decode_seconds": 0.0,
        }

    def add_prefill(self, tokens: int, began: float) -> None:
        """Count prompts of together `tokens` tokens, read since `began` (perf_counter)."""
        self._counts["requests"] += 1
        self._counts["prompt_tokens"] += int(tokens)
        self._counts["prefill_seconds"] += time.perf_counter() - began

    def add_decode(self, tokens: int, began: float) -> None:
        """Count `tokens` new tokens, decoded since `began`."""
        self._counts["new_tokens"] += int(tokens)
        self._counts["decode_seconds"] += time.perf_counter() - began

    def report(self) -> dict[str, float]:
        """Return the counts, times in s, with `compilations` and `tokens_per_second` (decoding)."""
        seconds = self._counts["decode_seconds"]
        speed = self._counts["new_tokens"] / seconds if seconds else 0.0
        return {
            "compilations": self._programs.compilations,
            **self._counts,
            "tokens_per_second": speed,
        }
