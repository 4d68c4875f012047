"""A micro model and a toy data set that train in seconds."""

import keras
import numpy as np
from tiny_models import IMAGE_ID, TOKENS_PER_IMAGE, random_images, tiny_config, tiny_nanovlm

from dl_techniques.training.setup import component_optimizer

LENGTH = 12


def micro_nanovlm(seed=0, dropout=0.0, mlp_dim=32):
    """Return a model with one block on each side."""
    config = tiny_config()
    language = {"num_layers": 1, "dropout": dropout, "mlp_dim": mlp_dim}
    return tiny_nanovlm(
        seed=seed,
        vision_config={**config["vision_config"], "depth": 1, "dropout": dropout},
        language_config={**config["language_config"], **language},
    )


def adam(rate=1e-2):
    """Return one Adam per component, clipped together."""
    names = ("vision", "language", "projection")
    return component_optimizer({name: keras.optimizers.Adam(rate) for name in names})


class ToyData(keras.utils.PyDataset):
    """Pictures with random text, of which each row learns another number of tokens.

    Args:
        batch_size: Rows per batch; `rows` must be a multiple of it.
        rows: Number of rows.
        seed: Another seed gives other rows in another order.
        shuffle: Whether every epoch has its own order.
        on_read: Is called with (epoch, batch) before a batch is read.
    """

    def __init__(self, batch_size=1, rows=3, seed=0, shuffle=True, on_read=lambda epoch, i: None):
        super().__init__()
        generator = np.random.default_rng(seed)
        self.ids = generator.integers(3, IMAGE_ID, (rows, LENGTH)).astype("int32")
        self.ids[:, :TOKENS_PER_IMAGE] = IMAGE_ID
        learned = 1 + generator.permutation(rows) % (LENGTH - TOKENS_PER_IMAGE - 1)
        is_learned = np.arange(LENGTH) >= LENGTH - learned[:, None]
        self.labels = np.where(is_learned, self.ids, -100).astype("int32")
        self.images = random_images(rows, seed=seed)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.on_read = on_read

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.ids) // self.batch_size

    def __getitem__(self, i):
        self.on_read(self.epoch, i)
        order = np.arange(len(self.ids))
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        return self.rows(order[i * self.batch_size : (i + 1) * self.batch_size])

    def rows(self, chosen):
        """Return the batch of the chosen rows."""
        inputs = {"images": self.images[chosen], "text_tokens": self.ids[chosen]}
        return inputs, self.labels[chosen]


def weights(model):
    """Return path -> value of every trainable variable, as float32."""
    return {
        v.path: np.array(keras.ops.convert_to_numpy(v.value), "float32")
        for v in model.trainable_variables
    }


def next_token_sums(logits, labels):
    """Return the sums of loss and of right answers over the supervised tokens, and their count."""
    logits, targets = logits[:, :-1].astype("float64"), labels[:, 1:]
    learned = targets != -100
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    picked = np.take_along_axis(log_p, np.where(learned, targets, 0)[..., None], axis=-1)[..., 0]
    right = (logits.argmax(axis=-1) == targets) & learned
    return -picked[learned].sum(), right.sum(), learned.sum()
