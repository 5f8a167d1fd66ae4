"""Between text and tokens: the vocabulary, conversations as prompts, and the text of answers as it grows."""
