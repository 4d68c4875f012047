"""Our chat templates in Jinja, the language of `chat_template.jinja` in published folders."""

from __future__ import annotations

import json

from dl_techniques.preprocessing.chat_templates import ChatTemplate
from dl_techniques.preprocessing.messages import IMAGE_MARK


def chat_template_jinja(template: ChatTemplate, image_token: str = IMAGE_MARK) -> str:
    """The template in Jinja; tokenized with special tokens, its text has our ids.

    That holds while no content spells a special token: there it is one, with us it is text. The
    contents may be strings or lists of `{"type": "text", "text": ...}` and `{"type": "image"}`.

    Args:
        template: any chat template.
        image_token: stands for an image; a processor puts the image's real layout in its place.
    """
    lines = [_refusals(template)]
    if template.starts_with_bos:
        lines.append("{{- bos_token }}")
    if template.start:
        lines.append(_shown(template.start))
    if template.default_system is not None:
        whole = template.system[0] + template.text_lead + template.default_system
        lines += [
            "{%- if messages[0].role != 'system' %}",
            "    " + _shown(whole + template.system[1]),
            "{%- endif %}",
        ]
    lines += ["{%- for message in messages %}", *_content(template, image_token)]
    for test, role in (("if", "system"), ("elif", "user")):
        before, after = getattr(template, role)
        lines += [
            f"    {{%- {test} message.role == '{role}' %}}",
            f"        {{{{- turn.images + {_quoted(before)} + turn.content + {_quoted(after)} }}}}",
        ]
    before, after = template.assistant
    end = "eos_token" if template.end_token is None else _quoted(template.end_token)
    lead = _quoted(before + template.answer_lead)
    lines += [
        "    {%- elif message.role == 'assistant' %}",
        f"        {{{{- {lead} + turn.content + {end} + {_quoted(after)} }}}}",
        "    {%- else %}",
        "        {{- raise_exception('the role must be system, user or assistant') }}",
        "    {%- endif %}",
        "{%- endfor %}",
        "{%- if add_generation_prompt %}",
        "    " + _shown(before),
        "{%- endif %}",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _content(template: ChatTemplate, image_token: str) -> list[str]:
    """Lines that collect a message's content in `turn`, and apart the images that go before it."""
    lines = ["    {%- set turn = namespace(images='', content='', seen=false) %}"]
    if template.text_lead:
        lines += [
            "    {%- if message.role != 'assistant' and (message.content is string"
            " or (message.content and message.content[0].type == 'text')) %}",
            f"        {{%- set turn.content = {_quoted(template.text_lead)} %}}",
            "    {%- endif %}",
        ]
    lines += [
        "    {%- if message.content is string %}",
        "        {%- set turn.content = turn.content + message.content %}",
        "    {%- else %}",
        "        {%- for part in message.content %}",
        "            {%- if part.type == 'text' %}",
        "                {%- set turn.content = turn.content + part.text %}",
        "                {%- set turn.seen = true %}",
    ]
    if template.leading_images_first:
        lines += [
            "            {%- elif part.type == 'image' and not turn.seen %}",
            f"                {{%- set turn.images = turn.images + {_quoted(image_token)} %}}",
        ]
    lines += [
        "            {%- elif part.type == 'image' %}",
        f"                {{%- set turn.content = turn.content + {_quoted(image_token)} %}}",
        "            {%- endif %}",
        "        {%- endfor %}",
        "    {%- endif %}",
    ]
    return lines


def _refusals(template: ChatTemplate) -> str:
    """Lines that refuse the turns which `encode_conversation` refuses for this template."""
    if not template.alternating:
        return ""
    message = f"with the {template.name} template the assistant answers every user message and "
    return "\n".join(
        [
            "{%- for message in messages %}",
            "    {%- set answered = not loop.first and loop.previtem.role == 'user' %}",
            "    {%- if answered != (message.role == 'assistant') %}",
            f"        {{{{- raise_exception({_quoted(message + 'nothing else')}) }}}}",
            "    {%- endif %}",
            "{%- endfor %}",
        ]
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _shown(text: str) -> str:
    return f"{{{{- {_quoted(text)} }}}}"
