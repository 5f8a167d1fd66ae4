"""Personal data by the patterns and checksums of Presidio (https://microsoft.github.io/presidio/), without a model of
language and without a network: names of people, which need one, are not found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rlserve.errors import UserError
from rlserve.serving.content.base import Found, Masker

if TYPE_CHECKING:
    from presidio_analyzer import EntityRecognizer

_MIN_SCORE = 0.35
"""Presidio's surer patterns, and numbers that it can parse as telephones; weaker ones are any number of some length."""
_NO_ARTIFACTS: Any = None
"""Of a model of language: recognisers that go by patterns want none."""
_MAY_BE = re.compile(r"[\d@:]")
"""All that is looked for has one of these."""


class PresidioMasker(Masker):
    """E-mail and IP addresses, numbers of telephones, credit cards, bank accounts (IBAN) and US social security.

    Raises:
        UserError: Presidio is not installed.
    """

    def __init__(self) -> None:
        if find_spec("presidio_analyzer") is None:
            raise UserError("content.masker=presidio needs presidio-analyzer: pip install 'rlserve[pii]'")
        self._recognizers = _recognizers()

    def find(self, text: str) -> Sequence[Found]:
        """What its recognisers say."""
        if _MAY_BE.search(text) is None:
            return ()
        results: list[Any] = []
        for recognizer in self._recognizers:
            results += recognizer.analyze(text, recognizer.supported_entities, _NO_ARTIFACTS) or []
        return [
            Found(start=each.start, end=each.end, kind=each.entity_type) for each in results if each.score >= _MIN_SCORE
        ]


def _recognizers() -> list[EntityRecognizer]:
    import tldextract
    from presidio_analyzer.predefined_recognizers import (
        CreditCardRecognizer,
        EmailRecognizer,
        IbanRecognizer,
        IpRecognizer,
        PhoneRecognizer,
        UsSsnRecognizer,
    )

    domains = tldextract.TLDExtract(suffix_list_urls=())  # its own list: it would fetch a newer one

    class _EmailRecognizer(EmailRecognizer):  # type: ignore[misc]
        def validate_result(self, pattern_text: str) -> bool:
            return bool(domains(pattern_text).top_domain_under_public_suffix)

    kinds = (CreditCardRecognizer, IbanRecognizer, IpRecognizer, UsSsnRecognizer, PhoneRecognizer)
    return [_EmailRecognizer(), *(kind() for kind in kinds)]
