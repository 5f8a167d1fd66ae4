"""What is taken out of the text of prompts and answers, and what is refused for it."""
