"""Configuration of masks and filters. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from rlserve.errors import check_fields


@dataclass(frozen=True, kw_only=True)
class ContentConfig:
    """What is taken out of the text of prompts and answers, such as personal data, and what is refused for it."""

    masker: str | None = None
    """Who finds it. ``presidio``: e-mail and IP addresses, numbers of telephones, credit cards, bank accounts and US
    social security; needs ``rlserve[pii]``. Or the dotted path of a class of your own, a ``Masker`` of
    ``rlserve.serving.content.base``. None takes nothing out."""
    mask_entities: tuple[str, ...] = ()
    """Of ``masker=presidio``: what to look for, by Presidio's names of entities that it knows patterns of, as
    ``EMAIL_ADDRESS`` or ``US_PASSPORT``. Empty: those above, and those of ``mask_languages``."""
    mask_languages: tuple[str, ...] = ()
    """Of ``masker=presidio``: look for all that it has patterns of for these languages too, as ``de``: numbers
    of passports and taxes and so on."""
    mask_min_score: float = 0.35
    """Of ``masker=presidio``: how sure it must be, from 0 to 1. Its weakest patterns are any number of some length."""
    masks_prompts: bool = True
    """Take it out of what the model reads."""
    masks_answers: bool = True
    """Take it out of what clients read, streamed or not."""
    max_prompt_chars: int = 200_000
    """Of a prompt that is masked or may be refused; a longer one is answered with 413 before anything is made of it."""
    filter: str | None = None
    """Who refuses prompts and answers. ``deny_list``: what stands in the file ``deny_list``; needs ``rlserve[filter]``.
    Or the dotted path of a class of your own, a ``ContentFilter`` of ``rlserve.serving.content.base``. None refuses
    nothing."""
    deny_list: str | None = None
    """File of ``filter=deny_list``: a phrase or a ``/regular expression/`` a line, under ``[kinds]``."""
    filters_prompts: bool = True
    """Answer such a prompt with 400."""
    filters_answers: bool = True
    """End such an answer before the words that it is refused for."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "deny_list": (self.filter == "deny_list") == (self.deny_list is not None)
                or "must name a file with filter=deny_list, and none without",
                "mask_min_score": 0 <= self.mask_min_score <= 1 or "must be from 0 to 1",
                "max_prompt_chars": self.max_prompt_chars >= 1 or "must be at least 1",
                **{
                    name: not getattr(self, name) or self.masker == "presidio" or "is an option of masker=presidio"
                    for name in ("mask_entities", "mask_languages")
                },
            },
        )
