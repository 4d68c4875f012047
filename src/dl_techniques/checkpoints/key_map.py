"""What a table of keys is, and how it is laid over a model's variables."""

import collections
import dataclasses
import re
from collections.abc import Iterable

import keras

from dl_techniques.checkpoints.transforms import TRANSFORMS, Transform


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table; `{i}` stands for a block's number.

    A line counts only for models that have its variable.

    Attributes:
        ours: Path of our variable below its owner; several, parted by spaces, for one key. A last
            name such as `gamma|scale` stands for the one of them that the model has.
        theirs: The checkpoint's key.
        transform: A name in `TRANSFORMS`.
    """

    ours: str
    theirs: str
    transform: str = "same"


@dataclasses.dataclass(frozen=True)
class Drop:
    """Keys that are not loaded.

    Attributes:
        pattern: Regular expression of the whole key.
        reason: Why.
    """

    pattern: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The embedding table and the head, which may be one.

    Attributes:
        embeddings: Path of our embedding table.
        head: Path of our head; a model without that variable has a tied head.
        embeddings_key: The checkpoint's key of the table.
        head_key: The checkpoint's key of the head.
        tied_key: The one of the two that is written for a tied head. A file may hold either, or
            both if they are equal.
    """

    embeddings: str
    head: str
    embeddings_key: str
    head_key: str
    tied_key: str


@dataclasses.dataclass(frozen=True)
class KeyMap:
    """The table of one checkpoint format.

    Attributes:
        name: The format.
        rules: One line per kind of weight; without any, the keys are our own paths.
        drops: The keys that are not loaded, with reasons.
        vocabulary: The embedding table and head, if the format has them.
        prefixes: What all keys of `rules` may begin with; the first is written.
        layouts: Other tables of the same format, read but never written.
    """

    name: str
    rules: tuple[Rule, ...]
    drops: tuple[Drop, ...] = ()
    vocabulary: Vocabulary | None = None
    prefixes: tuple[str, ...] = ("",)
    layouts: tuple["KeyMap", ...] = ()

    def dropped(self, key: str) -> str | None:
        """Return why a key is not loaded, None for keys that must be."""
        return next((d.reason for d in self.drops if re.fullmatch(d.pattern, key)), None)

    def prefix_in(self, keys: Iterable[str]) -> str:
        """Return the prefix that these keys have."""
        keys = set(keys)
        return max(self.prefixes, key=lambda prefix: self._matches(keys, prefix))

    def layout_of(self, keys: Iterable[str]) -> "KeyMap":
        """Return the table, of this and its other layouts, that most of these keys are in."""
        keys = set(keys)
        return max((self, *self.layouts), key=lambda table: table.matches(keys))

    def matches(self, keys: Iterable[str]) -> int:
        """Return how many lines have their key among these."""
        keys = set(keys)
        return max(self._matches(keys, prefix) for prefix in self.prefixes)

    def without(self, drops: tuple[Drop, ...]) -> "KeyMap":
        """Return the table with further keys that are not loaded, in every layout."""
        layouts = tuple(layout.without(drops) for layout in self.layouts)
        return dataclasses.replace(self, drops=(*self.drops, *drops), layouts=layouts)

    def _matches(self, keys: set[str], prefix: str) -> int:
        return sum(prefix + rule.theirs.replace("{i}", "0") in keys for rule in self.rules)


@dataclasses.dataclass(frozen=True)
class Binding:
    """A rule for certain variables.

    Attributes:
        paths: Our variables, below their owner.
        keys: The checkpoint's key, and others that hold the same tensor.
        transform: The change between them.
        is_vocabulary: Whether each row (of theirs) belongs to a token id.
    """

    paths: tuple[str, ...]
    keys: tuple[str, ...]
    transform: Transform
    is_vocabulary: bool = False


def variables_of(owner: keras.layers.Layer) -> dict[str, keras.Variable]:
    """Return a built layer's or model's weights by their path below it.

    Args:
        owner: A layer or a model.

    Raises:
        ValueError: if it is not built, or two weights have one path.
    """
    if not owner.built:
        raise ValueError(f"{owner.name} has no weights yet: build it first.")
    by_path = {}
    for variable in owner.weights:
        path = variable.path
        # A layer's name stands in the path, after those of what it was built in; a model whose
        # constructor builds its parts does not.
        below = f"/{path}".partition(f"/{owner.name}/")[2] or path
        if below in by_path:
            raise ValueError(f"{owner.name} has two weights with the path {below!r}.")
        by_path[below] = variable
    return by_path


def bind(key_map: KeyMap, paths: Iterable[str], prefix: str | None = None) -> list[Binding]:
    """Return which key of the checkpoint goes with which of our variables.

    Args:
        key_map: The table.
        paths: Paths of variables below their owner.
        prefix: One of the table's prefixes; default: the one that is written.

    Raises:
        ValueError: naming every path that no rule has, or several have.
    """
    paths = list(paths)
    if not key_map.rules:
        return [Binding((path,), (path,), TRANSFORMS["same"]) for path in paths]
    prefix = key_map.prefixes[0] if prefix is None else prefix
    bindings = _bind_vocabulary(key_map.vocabulary, paths)
    for rule in key_map.rules:
        first, *others = rule.ours.split()
        pattern = _pattern(first)
        for path in paths:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            number = match.group(1) if match.groups() else ""
            bound = (path, *(other.replace("{i}", number) for other in others))
            key = prefix + rule.theirs.replace("{i}", number)
            bindings.append(Binding(bound, (key,), TRANSFORMS[rule.transform]))
    problems = []
    bound = collections.Counter(path for binding in bindings for path in binding.paths)
    for path in paths:
        if bound[path] != 1:
            lines = "no line" if not bound[path] else "several lines"
            problems.append(f"{path}: the format {key_map.name!r} has {lines} for this weight")
    problems += [f"{path}: the model has no such weight" for path in set(bound) - set(paths)]
    if problems:
        raise ValueError(listed(f"The model does not fit the format {key_map.name!r}", problems))
    return bindings


def _pattern(path: str) -> re.Pattern:
    """Return what matches the paths that a rule's path stands for."""
    owner, slash, name = path.rpartition("/")
    owner = re.escape(owner + slash).replace(r"\{i\}", r"(\d+)")
    return re.compile(f"{owner}(?:{'|'.join(map(re.escape, name.split('|')))})")


def _bind_vocabulary(vocabulary: Vocabulary | None, paths: list[str]) -> list[Binding]:
    if vocabulary is None:
        return []
    same, head = TRANSFORMS["same"], TRANSFORMS["transpose"]
    if vocabulary.head in paths:
        return [
            Binding((vocabulary.embeddings,), (vocabulary.embeddings_key,), same, True),
            Binding((vocabulary.head,), (vocabulary.head_key,), head, True),
        ]
    keys = (vocabulary.embeddings_key, vocabulary.head_key)
    ordered = sorted(keys, key=lambda key: key != vocabulary.tied_key)
    return [Binding((vocabulary.embeddings,), tuple(ordered), same, True)]


def listed(title: str, problems: list[str], most: int = 40) -> str:
    """Return one message for several problems."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [f"{title} ({count}):", *(f"  - {p}" for p in problems[:most])]
    if len(problems) > most:
        lines.append(f"  - and {len(problems) - most} more")
    return "\n".join(lines)
