"""HTML from elsewhere, reduced to what a page may show without trusting it.

Kept: the elements of text, lists and tables, and images embedded as PNG. Every other tag is shown as the text it is
written in, and every attribute is dropped but ``colspan``, ``rowspan`` and an embedded image's ``src`` and ``alt``.
"""

from __future__ import annotations

from html import escape
from html.parser import HTMLParser

_INLINE = frozenset({"b", "strong", "i", "em", "small", "code", "sub", "sup", "br"})
_BLOCKS = frozenset({"p", "pre", "h3", "h4", "ul", "ol", "li", "dl", "dt", "dd", "figure", "figcaption"})
_TABLES = frozenset({"table", "caption", "thead", "tbody", "tr", "th", "td"})
_KEPT = _INLINE | _BLOCKS | _TABLES
_EMBEDDED = "data:image/png;base64,"


def sanitize_html(html: str) -> str:
    """``html`` with everything outside the allow-list escaped or dropped; always safe to put into a page."""
    cleaner = _Cleaner()
    cleaner.feed(html)
    cleaner.close()
    return "".join(cleaner.parts + [f"</{tag}>" for tag in reversed(cleaner.open)])


class _Cleaner(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag == "img" and attributes.get("src", "").startswith(_EMBEDDED):
            self.parts.append(f'<img src="{escape(attributes["src"])}" alt="{escape(attributes.get("alt", ""))}">')
        elif tag in _KEPT:
            spans = (
                f' {name}="{int(attributes[name])}"'
                for name in ("colspan", "rowspan")
                if _is_count(attributes.get(name))
            )
            self.parts.append(f"<{tag}{''.join(spans)}>")
            self.open += [tag] if tag != "br" else []
        else:
            self.parts.append(escape(self.get_starttag_text() or f"<{tag}>"))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.open:
            self.parts.append("" if tag in _KEPT else escape(f"</{tag}>"))
            return
        # Close what was left open inside, so that a stray tag cannot swallow the rest of the page.
        while (inner := self.open.pop()) != tag:
            self.parts.append(f"</{inner}>")
        self.parts.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.parts.append(escape(data))


def _is_count(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isdigit() and len(text) < 4
