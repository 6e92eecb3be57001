"""Llama 3's chat template, applied by the client when a route takes plain text.

Format: Meta's model card for Llama 3.1, "instruct model prompt". The hub template
of Llama 3.1, which a server's own chat route applies, puts a system turn with two
dates (about 25 tokens) before it; this one, like the embedded server, does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def render_llama3(messages: Iterable[Mapping[str, str]]) -> str:
    """The prompt for a chat (``{"role", "content"}`` each), ending where the assistant is to speak.

    Roles are taken as given; contents are stripped, as the template does.
    """
    turns = "".join(
        f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n{m['content'].strip()}<|eot_id|>"
        for m in messages
    )
    return f"<|begin_of_text|>{turns}<|start_header_id|>assistant<|end_header_id|>\n\n"
