"""Personal data by the patterns and checksums of Presidio (https://microsoft.github.io/presidio/), without a model of
language and without a network: names of people, which need one, are not found."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rlserve.errors import UserError
from rlserve.serving.content.base import Found, Masker
from rlserve.serving.content.config import ContentConfig

if TYPE_CHECKING:
    from presidio_analyzer import EntityRecognizer

DEFAULT_ENTITIES = ("EMAIL_ADDRESS", "CREDIT_CARD", "IBAN_CODE", "IP_ADDRESS", "US_SSN", "PHONE_NUMBER")
_NO_ARTIFACTS: Any = None
"""Of a model of language: recognisers that go by patterns want none."""
_MAY_BE = re.compile(r"[\d@:]")
"""All that is looked for by default has one of these."""


class PresidioMasker(Masker):
    """E-mail and IP addresses, numbers of telephones, credit cards, bank accounts (IBAN) and US social security, unless
    the configuration says something else.

    Raises:
        UserError: Presidio is not installed, or knows no patterns of what is to be found.
    """

    def __init__(self, config: ContentConfig) -> None:
        if find_spec("presidio_analyzer") is None:
            raise UserError("content.masker=presidio needs presidio-analyzer: pip install 'rlserve[pii]'")
        self._min_score = config.mask_min_score
        self._recognizers = _recognizers(config)
        self._is_default = not config.mask_entities and not config.mask_languages

    def find(self, text: str) -> Sequence[Found]:
        """What its recognisers say."""
        if self._is_default and _MAY_BE.search(text) is None:
            return ()
        results: list[Any] = []
        for recognizer in self._recognizers:
            results += recognizer.analyze(text, recognizer.supported_entities, _NO_ARTIFACTS) or []
        return [
            Found(start=each.start, end=each.end, kind=each.entity_type)
            for each in results
            if each.score >= self._min_score
        ]


def _recognizers(config: ContentConfig) -> list[EntityRecognizer]:
    """Those that the configuration asks for."""
    known = {recognizer.supported_entities[0]: recognizer for recognizer in _all_recognizers()}
    languages = {recognizer.supported_language for recognizer in known.values()}
    if unknown := sorted(set(config.mask_entities) - set(known)):
        raise UserError(f"content.mask_entities={unknown[0]}: Presidio has patterns of {', '.join(sorted(known))}")
    if unknown := sorted(set(config.mask_languages) - languages):
        raise UserError(
            f"content.mask_languages={unknown[0]}: Presidio has patterns for {', '.join(sorted(languages))}"
        )
    wanted = config.mask_entities or DEFAULT_ENTITIES
    of_languages = [name for name, each in known.items() if each.supported_language in config.mask_languages]
    return [known[name] for name in dict.fromkeys((*wanted, *of_languages))]


def _all_recognizers() -> Iterator[EntityRecognizer]:
    """All that go by patterns alone."""
    import tldextract
    from presidio_analyzer import PatternRecognizer, predefined_recognizers

    domains = tldextract.TLDExtract(suffix_list_urls=())  # its own list: it would fetch a newer one

    class _EmailRecognizer(predefined_recognizers.EmailRecognizer):  # type: ignore[misc]
        def validate_result(self, pattern_text: str) -> bool:
            return bool(domains(pattern_text).top_domain_under_public_suffix)

    for kind in vars(predefined_recognizers).values():
        if isinstance(kind, type) and issubclass(kind, PatternRecognizer):
            is_email = kind is predefined_recognizers.EmailRecognizer
            yield _EmailRecognizer() if is_email else kind()
    yield predefined_recognizers.PhoneRecognizer()
