"""The README.md of a folder with weights: what it is, how large, trained on what, how good."""

import json
import pathlib

from dl_techniques.models.model_size import analyze_model_size

_HEADER = """---
library_name: {library}
pipeline_tag: image-text-to-text
tags:
- vision-language
- {tag}
---
"""


def write_model_card(
    model, path: pathlib.Path, library: str = "dl_techniques", usage: str | None = None
) -> None:
    """Write a model card.

    Args:
        model: A `VisionLanguageModel`; its `training_data` and `results` are stated.
        path: The file.
        library: What loads the folder, for the hub.
        usage: Python lines that load it; default: those with `from_preset`.
    """
    name = type(model).__name__
    usage = usage or (
        f"from {type(model).__module__} import {name}\n\n"
        f'model = {name}.from_preset("FOLDER OR hf://OWNER/NAME")'
    )
    sections = [
        _HEADER.format(library=library, tag=name.lower()),
        f"# {name}, {model.count_params() / 1e6:,.1f}M parameters\n",
        f"```python\n{usage}\n```\n",
        f"## Parameters\n\n```\n{analyze_model_size(model)}\n```\n",
        f"## Configuration\n\n```json\n{json.dumps(model.arguments(), indent=2)}\n```\n",
        f"## Training data\n\n{model.training_data or 'Not stated.'}\n",
        f"## Results\n\n{_results(model.results)}\n",
    ]
    path.write_text("\n".join(sections), encoding="utf-8")


def _results(results: dict | None) -> str:
    if not results:
        return "Not stated."
    table = {
        name: value if isinstance(value, dict) else {"": value} for name, value in results.items()
    }
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    lines = [_line("", *columns), _line(*["---"] * (1 + len(columns)))]
    for name, row in table.items():
        lines.append(_line(name, *(_value(row.get(column, "")) for column in columns)))
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _value(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
