"""EvaluationCallback: how a model answers while `fit` trains it."""

from collections.abc import Iterable

import keras

from dl_techniques.datasets.samples import Sample
from dl_techniques.evaluation.question_answering import (
    answer_questions,
    question_message,
    sample_questions,
    share_correct,
)
from dl_techniques.generation.arguments import check_length
from dl_techniques.generation.prompts import gather_prompts
from dl_techniques.utils.logger import logger


class EvaluationCallback(keras.callbacks.Callback):
    """Asks the same few questions again and again; the share of right answers is `exact_match`.

    The latest, once there is one, is in every epoch's logs, for `History` and for callbacks that
    come later in `fit`'s list (`ModelCheckpoint("best.keras", monitor="exact_match", mode="max")`).

    Args:
        samples: Held-out rows with images, questions and answers; see `answer_questions`.
        every: Steps from one evaluation to the next.
        batch_size: Questions at a time.
        max_new_tokens: The longest answer, in tokens.

    Attributes:
        history: Step -> kind of question -> share of right answers; "all" is of all.

    Raises:
        ValueError: a number below 1, or no samples; when `fit` begins: a model without processor,
            or no room for an answer.
    """

    def __init__(
        self,
        samples: Iterable[Sample],
        every: int,
        batch_size: int = 64,
        max_new_tokens: int = 16,
    ):
        super().__init__()
        self._samples = list(samples)
        if not self._samples or min(every, batch_size, max_new_tokens) < 1:
            raise ValueError(
                f"Expected samples, got {len(self._samples)}, and every={every}, "
                f"batch_size={batch_size} and max_new_tokens={max_new_tokens} of at least 1."
            )
        self._every, self._step, self._batch = every, 0, -1
        self._settings = (batch_size, max_new_tokens)
        self.history: dict[int, dict[str, float]] = {}

    def on_train_begin(self, logs=None):
        """Refuse what cannot be asked, before anything is learned."""
        questions = (question for sample in self._samples for question in sample_questions(sample))
        prompts = gather_prompts(self.model, [[question_message(q)] for q in questions])
        check_length(self.model, prompts.positions, self._settings[1], "max_new_tokens")

    def on_epoch_begin(self, epoch, logs=None):
        """Count the epoch's steps from its first."""
        self._batch = -1

    def on_train_batch_end(self, batch, logs=None):
        """Ask, every so many steps; a call may be for several."""
        before = self._step
        self._step += batch - self._batch
        self._batch = batch
        if self._step // self._every == before // self._every:
            return
        answered = answer_questions(self.model, self._samples, *self._settings)
        shares = {kind: share for kind, (share, _) in share_correct(answered).items()}
        self.history[self._step] = shares
        logger.info("step %d: %.1f %% of the answers are right", self._step, 100 * shares["all"])

    def on_epoch_end(self, epoch, logs=None):
        """Put the last figure into the epoch's logs."""
        if self.history and logs is not None:
            logs["exact_match"] = self.history[max(self.history)]["all"]
