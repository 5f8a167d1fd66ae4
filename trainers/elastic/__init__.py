"""How the ranks of a trainer group talk, and sums whose bits do not depend on how many ranks there are."""
