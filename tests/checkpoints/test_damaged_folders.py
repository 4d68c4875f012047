"""Damaged folders: a model, or an error that is a ValueError; never a crash or much memory."""

import copy
import json
import random
import tracemalloc

import pytest
from corruption import corrupted
from test_damaged_configs import JUNK, objects_in
from tiny_models import tiny_nanovlm
from tiny_presets import BARE, tiny_model

from dl_techniques.checkpoints import export_nanovlm, export_smolvlm
from dl_techniques.layers.transformer_blocks import DecoderBlock, EncoderBlock
from dl_techniques.models.nano_vlm import NanoVLM

FORMATS = ("native", "smolvlm", "nanovlm")
LARGE = [2, 3, 7, 10**6, 2**20, 10**9, 2**31 - 1]
MILLION, GIANT = 10**6, 2**30
MOST_BLOCKS = 100


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders of one model of two blocks, by format; to be left as they are."""
    folder = tmp_path_factory.mktemp("folders")
    larger = tiny_model(folder / "tokenizer")
    model = tiny_nanovlm(
        vision_config=larger.vision_config | {"depth": 1},
        language_config=larger.language_config | {"num_layers": 1},
        projection_config=BARE,
        vocab_size=larger.vocab_size,
        image_token_id=larger.image_token_id,
    )
    model.processor = larger.processor
    model.save_to_preset(folder / "native")
    export_smolvlm(model, folder / "smolvlm")
    export_nanovlm(model, folder / "nanovlm")
    return {name: folder / name for name in FORMATS}


@pytest.fixture
def outcome(monkeypatch):
    """Load a folder: -> the refusal, None if it loads; anything else is a failure."""
    made = []

    def counted(build):
        def create(self, *args, **kwargs):
            made.append(self)
            assert len(made) < MOST_BLOCKS, "the blocks that a config claims are being made"
            build(self, *args, **kwargs)

        return create

    for block in (EncoderBlock, DecoderBlock):
        monkeypatch.setattr(block, "__init__", counted(block.__init__))

    def load(folder):
        made.clear()
        size = sum(path.stat().st_size for path in folder.iterdir())
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            NanoVLM.from_preset(folder, tokenizer=folder)
            refusal = None
        except ValueError as error:
            refusal = str(error)
        assert tracemalloc.get_traced_memory()[1] - before < size + 100e6
        return refusal

    tracemalloc.start()
    yield load
    tracemalloc.stop()


def with_junk(data: bytes, generator: random.Random) -> bytes:
    """Return a JSON file with another value in one field."""
    config = json.loads(data)
    holder = generator.choice([o for o in objects_in(config) if o])
    holder[generator.choice(sorted(holder))] = copy.deepcopy(generator.choice(JUNK + LARGE))
    return json.dumps(config).encode()


def with_flipped_bits(data: bytes, generator: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def damaged(folder, seed: int):
    """Return (a file of the folder, what damage makes of it), a function of the seed."""
    generator, kind = random.Random(seed), seed % 5
    paths = sorted(path for path in folder.iterdir() if path.suffix != ".md")
    if kind == 0:
        path = folder / "model.safetensors"
        return path, corrupted(path.read_bytes(), seed)[1]
    if kind in (1, 2):
        path = folder / "config.json"
        return path, with_junk(path.read_bytes(), generator)
    if kind == 3:
        path = generator.choice([path for path in paths if path.suffix == ".json"])
        return path, with_junk(path.read_bytes(), generator)
    path = generator.choice(paths)
    data = path.read_bytes()
    if generator.random() < 0.5:
        return path, data[: generator.randrange(len(data))]
    return path, with_flipped_bits(data, generator)


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_folders(folders, outcome, name):
    folder, refused = folders[name], 0
    assert outcome(folder) is None
    for seed in range(35):
        path, data = damaged(folder, seed)
        whole = path.read_bytes()
        path.write_bytes(data)
        try:
            refused += outcome(folder) is not None
        except BaseException as error:
            error.add_note(f"{path.name} with seed {seed}")
            raise
        finally:
            path.write_bytes(whole)
    assert refused >= 15


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("native", {"arguments/vision_config/depth": MILLION}),
        ("native", {"arguments/language_config/num_layers": MILLION}),
        ("native", {"arguments/language_config/hidden_dim": GIANT}),
        ("native", {"arguments/language_config/head_dim": GIANT}),
        ("native", {"arguments/vision_config/img_size": GIANT}),
        ("native", {"arguments/vocab_size": GIANT}),
        ("smolvlm", {"vision_config/num_hidden_layers": MILLION}),
        ("smolvlm", {"text_config/num_hidden_layers": MILLION}),
        ("smolvlm", {"text_config/hidden_size": GIANT}),
        ("smolvlm", {"text_config/head_dim": GIANT}),
        ("smolvlm", {"text_config/vocab_size": GIANT}),
        ("nanovlm", {"vit_n_blocks": MILLION}),
        ("nanovlm", {"lm_n_blocks": MILLION}),
        ("nanovlm", {"lm_hidden_dim": GIANT, "lm_inter_dim": GIANT}),
        ("nanovlm", {"lm_vocab_size": GIANT}),
    ],
)
def test_claimed_sizes_cost_nothing(folders, outcome, name, changes):
    path = folders[name] / "config.json"
    whole = path.read_bytes()
    config = json.loads(whole)
    for place, value in changes.items():
        *parts, field = place.split("/")
        holder = config
        for part in parts:
            holder = holder[part]
        assert field in holder or field == "head_dim"
        holder[field] = value
    try:
        path.write_text(json.dumps(config))
        assert outcome(folders[name]) is not None
    finally:
        path.write_bytes(whole)
