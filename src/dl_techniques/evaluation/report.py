"""A page of an evaluation: figures, errors by category, and questions with pictures."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from dl_techniques.datasets.inspection_page import images_html
from dl_techniques.datasets.page_style import PAGE_START
from dl_techniques.evaluation.data import Questions
from dl_techniques.evaluation.predictions import Record

WRONG, RIGHT = 40, 10  # So many questions of a task are shown.

_PAGE = (
    PAGE_START
    + """\
table {{ border-collapse: collapse; margin: 1rem 0; }}
td, th {{ padding: .15rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }}
td:first-child, th:first-child {{ text-align: left; }}
.wrong {{ color: #a11; }} .right {{ color: #064; }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""
)


def evaluation_page(
    title: str, tasks: Mapping[str, tuple[dict[str, Any], list[Record], Questions]]
) -> str:
    """Return a page as HTML, its pictures inside of it.

    Args:
        title: Of the page.
        tasks: Name -> results of `summarise`, the records they are of, and the questions.
    """
    parts = []
    for task, (results, records, questions) in tasks.items():
        parts.append(f"<h2>{html.escape(task)}</h2>")
        parts.append(_figures(results))
        parts.append(_categories(results))
        parts += [_card(record, questions) for record in shown_records(records)]
    return _PAGE.format(title=html.escape(title), body="\n".join(parts))


def shown_records(records: Sequence[Record]) -> list[Record]:
    """Return some records, wrong ones first, each kind spread over the data and sorted by category.

    An answer is wrong that scores less than a half.
    """
    wrong = [record for record in records if record["score"] < 0.5]
    right = [record for record in records if record["score"] >= 0.5]
    shown = []
    for group, most in ((wrong, WRONG), (right, RIGHT)):
        step = max(1, -(-len(group) // most))
        shown += sorted(group[::step], key=lambda record: record["category"])
    return shown


def _figures(results) -> str:
    blind = results.get("blind", {})
    rows = [
        [name, _share(f["value"]), f"{_share(f['low'])} to {_share(f['high'])}"]
        + ([_share(blind[name]["value"])] if blind else [])
        for name, f in results["figures"].items()
    ]
    for name, value in results.get("totals", {}).items():
        rows.append([name, _share(value), "", *([""] if blind else [])])
    heads = ["figure", "%", "95 % interval", *(["without pictures"] if blind else [])]
    note = f"<p>{html.escape(results['note'])}</p>" if "note" in results else ""
    return f"<p>{results['questions']:,} questions</p>{note}{_table(heads, rows)}"


def _categories(results) -> str:
    metric, categories = results["metric"], results["categories"]
    worst = sorted(categories, key=lambda name: categories[name][metric])
    rows = [
        [name or "(none)", _share(categories[name][metric]), f"{categories[name]['questions']:,}"]
        for name in worst
    ]
    return _table(["category, the worst first", f"{metric} %", "questions"], rows) if rows else ""


def _card(record: Record, questions: Questions) -> str:
    images = questions[record["row"]][record["part"]].images
    kind = "right" if record["score"] >= 0.5 else "wrong"
    read = "" if record["parsed"] in (None, record["answer"]) else f" (read: {record['parsed']})"
    references = ", ".join(dict.fromkeys(record["references"]))
    texts = [
        f"<h3>{html.escape(' '.join([record['category'], record['id']]).strip())}</h3>",
        f"<p>{html.escape(record['prompt'])}</p>",
        f'<p class="{kind}">{html.escape(record["answer"] + read)}</p>',
        f"<p>right: {html.escape(references)}; score {record['score']:.2f}</p>",
    ]
    texts = f'<div class="texts">{"".join(texts)}</div>'
    return f'<section><div class="sample">{images_html(list(images))}{texts}</div></section>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _share(value: float) -> str:
    return f"{100 * value:.1f}"
