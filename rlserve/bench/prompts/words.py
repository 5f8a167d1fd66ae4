"""Prompts of plain English words, where no tokenizer is known: a token a word is what most vocabularies have."""

from __future__ import annotations

import random

from rlserve.bench.prompts.base import PromptWriter

_TEXT = """
the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one you
were all her she there would their we him been has when who will no more if out so up said what its about than into
them can only other time new some could these two may first then do any like my now over such our man me even most
made after also did many off before must well back through years much where your way down should because long each
just state people those too mr how little good world make very year still see own work men day get here old life both
between being under three never know same last another while us might great go come since against right came take used
himself few house use place during high without again home around small however found part school every think war
until always away something fact water though public less put thing almost hand enough far took head yet government
system set better told nothing night end why called find going look asked later point knew next program city business
give group toward young days let room word side social given present several order national second rather power
perhaps large early often children
"""
WORDS: tuple[str, ...] = tuple(_TEXT.split())


class WordWriter(PromptWriter):
    """A word a token, each with a space before it."""

    how = "about a token a word, since no tokenizer is known"

    def write(self, num_tokens: int, rng: random.Random) -> str:
        """``num_tokens`` words."""
        return "".join(f" {word}" for word in rng.choices(WORDS, k=num_tokens))
